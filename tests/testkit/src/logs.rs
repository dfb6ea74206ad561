//! What the servers' logs tell about keys: when which server held which key, and since when it used it.
//!
//! Traffic Server stamps each line with local time to the millisecond, `[Nov 22 03:12:55.563]`. All
//! servers of a fleet run on one machine, so that their stamps can be compared. A server writes a line
//! about a set just after its ticket context has it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::fleet::Fleet;

/// Milliseconds of a day; stamps are taken without their date, whose year is missing.
const DAY: u64 = 86_400_000;

/// What stands in a line that tells of something grave.
const FAILURES: [&str; 5] = [" ERROR: ", " FATAL: ", " ALERT: ", " EMERGENCY: ", "panicked"];

/// Something that one server wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, counted from the first line of any server. Whole milliseconds.
    pub at: Duration,
    /// Which server, by its index in the fleet.
    pub index: usize,
    /// What.
    pub event: Event,
}

/// The lines that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This server, which leads, begins a handover to a generation.
    Staging(u64),
    /// The ticket context has a new set.
    Installed {
        /// The agreed generation that encrypts; `None` for a key of the server's own.
        current: Option<u64>,
        /// The generation that is held but not used yet.
        staged: Option<u64>,
        /// The encrypting key's fingerprint.
        fingerprint: String,
    },
    /// This server leads now, in this term.
    Leads(u64),
    /// This server, which leads, activates a generation that another one may not hold.
    Without {
        /// The other's index in the fleet.
        member: usize,
        /// The generation.
        generation: u64,
    },
    /// A line at the level of an error or above, whoever wrote it, or about a panic.
    Failure(String),
    /// The process began anew.
    Started,
}

/// One generation's way through the fleet.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// Which generation.
    pub generation: u64,
    /// When the leader began the handover.
    pub staging: Option<Duration>,
    /// When each server began to encrypt with it, by index.
    pub uses: BTreeMap<usize, Duration>,
}

impl Rotation {
    /// When the first server used it.
    pub fn first(&self) -> Option<Duration> {
        self.uses.values().min().copied()
    }

    /// From the first to the last server's use.
    pub fn spread(&self) -> Option<Duration> {
        Some(*self.uses.values().max()? - self.first()?)
    }

    /// From the leader's first step to the last server's use.
    pub fn handover(&self) -> Option<Duration> {
        self.uses.values().max()?.checked_sub(self.staging?)
    }
}

/// All that the fleet's servers wrote, in the order of time.
pub fn read(fleet: &Fleet) -> Vec<Entry> {
    let texts = fleet.servers.iter().map(|ats| (ats.diags(), ats.debug_lines()));
    entries(&texts.collect::<Vec<_>>())
}

/// Reads what servers write as they write it, each line once: for runs so long that reading all of
/// it again would be the machine's main occupation.
///
/// The stamps' date is taken from the clock, so that a run may last for days. They must be in UTC:
/// set TZ for the servers.
#[derive(Debug)]
pub struct Follower {
    begun: SystemTime,
    files: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    index: usize,
    path: PathBuf,
    read: u64,
    /// The beginning of a line whose end was not there yet.
    rest: Vec<u8>,
}

impl Follower {
    /// Follows both files of each server of a fleet; times count from `begun`.
    pub fn new(fleet: &Fleet, begun: SystemTime) -> Self {
        let files = |(index, ats): (usize, &crate::ats::Ats)| {
            let logs = ats.root().join("var/log");
            ["diags.log", "traffic.out"].map(|name| {
                let path = logs.join(name);
                Followed { index, path, read: 0, rest: Vec::new() }
            })
        };
        Self { begun, files: fleet.servers.iter().enumerate().flat_map(files).collect() }
    }

    /// What has been written since the last call, in the order of time within itself.
    pub fn news(&mut self) -> Vec<Entry> {
        let now = self.begun.elapsed().unwrap_or_default();
        let begun = self.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut all = Vec::new();
        for file in &mut self.files {
            for line in file.lines() {
                if let (Some(stamp), Some(event)) = (stamp(&line), event(&line)) {
                    let at = near(stamp, begun, now);
                    all.push(Entry { at, index: file.index, event });
                }
            }
        }
        all.sort_by_key(|entry| (entry.at, rank(&entry.event)));
        all
    }
}

impl Followed {
    fn lines(&mut self) -> Vec<String> {
        // No file yet means no lines yet.
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        let mut bytes = std::mem::take(&mut self.rest);
        let count =
            file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut bytes));
        self.read += count.unwrap_or(0) as u64;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        self.rest = bytes.split_off(end);
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

/// The time since `begun` (itself counted from 1970) of a stamp that was read at `now`: of all days
/// the one that brings it nearest.
fn near(stamp: u64, begun: Duration, now: Duration) -> Duration {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let (begun, now) = (millis(begun), millis(now));
    // How far it is behind now; a clock may be a little ahead of the line that tells it.
    let behind = (begun + now) % DAY + DAY - stamp;
    let behind = (behind + DAY / 2) % DAY;
    Duration::from_millis((now + DAY / 2).saturating_sub(behind))
}

/// The generations that servers used, in their order.
pub fn rotations(entries: &[Entry]) -> Vec<Rotation> {
    let mut found: BTreeMap<u64, Rotation> = BTreeMap::new();
    for entry in entries {
        match &entry.event {
            // A second leader may stage the same generation again if the first one's came to
            // nothing; the last attempt is the one that counts.
            Event::Staging(generation) => {
                found.entry(*generation).or_default().staging = Some(entry.at);
            }
            Event::Installed { current: Some(generation), .. } => {
                let rotation = found.entry(*generation).or_default();
                rotation.uses.entry(entry.index).or_insert(entry.at);
            }
            _ => {}
        }
    }
    let named = found.into_iter().map(|(generation, found)| Rotation { generation, ..found });
    named.filter(|rotation| !rotation.uses.is_empty()).collect()
}

/// The time between each two successive generations, first use to first use. A generation that no
/// server used is no rotation, so that it makes the gap around it longer.
pub fn gaps(rotations: &[Rotation]) -> Vec<(u64, Duration)> {
    let firsts = rotations.iter().filter_map(|r| Some((r.generation, r.first()?)));
    let firsts: Vec<_> = firsts.collect();
    firsts.windows(2).map(|pair| (pair[1].0, pair[1].1.saturating_sub(pair[0].1))).collect()
}

/// The set that a server has installed since its process last began, if any.
pub fn last_set(entries: &[Entry], index: usize) -> Option<&Event> {
    let own = entries.iter().rev().filter(|entry| entry.index == index).map(|entry| &entry.event);
    let since_start = own.take_while(|event| **event != Event::Started);
    since_start.into_iter().find(|event| matches!(event, Event::Installed { .. }))
}

/// `texts[i]` are the diags.log and the debug lines of the server at index `i`.
fn entries(texts: &[(String, String)]) -> Vec<Entry> {
    let first = |text: &str| text.lines().find_map(stamp);
    let firsts = texts.iter().flat_map(|(notes, debug)| [first(notes), first(debug)]);
    // Files may begin on both sides of a midnight; half a day is the longest that is understood.
    let firsts: Vec<u64> = firsts.flatten().collect();
    let Some(base) = firsts
        .iter()
        .copied()
        .find(|base| firsts.iter().all(|other| since(*other, *base) < DAY / 2))
    else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (index, (notes, debug)) in texts.iter().enumerate() {
        for line in notes.lines().chain(debug.lines()) {
            if let (Some(stamp), Some(event)) = (stamp(line), event(line)) {
                let at = Duration::from_millis(since(stamp, base));
                all.push(Entry { at, index, event });
            }
        }
    }
    // The two files of a server have no common order within a millisecond, but keys have one.
    all.sort_by_key(|entry| (entry.at, rank(&entry.event)));
    all
}

fn rank(event: &Event) -> (bool, Option<u64>, Option<u64>) {
    match event {
        Event::Started => (false, None, None),
        Event::Installed { current, staged, .. } => (true, *current, *staged),
        Event::Staging(_) | Event::Leads(_) | Event::Without { .. } | Event::Failure(_) => {
            (true, None, None)
        }
    }
}

fn since(stamp: u64, base: u64) -> u64 {
    (stamp + DAY - base) % DAY
}

/// The milliseconds of the day in `[Nov 22 03:12:55.563] ...`.
fn stamp(line: &str) -> Option<u64> {
    let stamp = line.strip_prefix('[')?.split(']').next()?;
    let (clock, millis) = stamp.rsplit(' ').next()?.split_once('.')?;
    let mut parts = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + millis.parse::<u64>().ok()?)
}

fn event(line: &str) -> Option<Event> {
    if FAILURES.iter().any(|word| line.contains(word)) {
        return Some(Event::Failure(line.to_owned()));
    }
    let (_, text) =
        line.split_once("[stek_share] ").or_else(|| line.split_once("(stek_share) "))?;
    if text.starts_with("Generate initial STEK succeeded") {
        return Some(Event::Started);
    }
    if let Some(rest) = text.strip_prefix("staging key ") {
        return Some(Event::Staging(number_after(rest, "as generation ")?));
    }
    if let Some(term) = number_after(text, "this server is the leader of term ") {
        return Some(Event::Leads(term));
    }
    if let Some(member) = number_after(text, "server ") {
        let words = [" is unreachable; generation ", " has not installed generation "];
        let generation = words.iter().find_map(|words| number_after(text, words))?;
        let member = usize::try_from(member).ok()?.checked_sub(1)?;
        return Some(Event::Without { member, generation });
    }
    let set = text.strip_prefix("installed ")?;
    let (_, fingerprint) = set.split_once(", current ")?;
    Some(Event::Installed {
        current: number_after(set, "(generation "),
        staged: number_after(set, "staged generation "),
        fingerprint: fingerprint.split(' ').next()?.to_owned(),
    })
}

fn number_after(text: &str, words: &str) -> Option<u64> {
    let (_, rest) = text.split_once(words)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(lines: &str) -> (String, String) {
        (lines.to_owned(), String::new())
    }

    const A: &str = "\
[Nov 30 23:59:59.900] w DIAG: (stek_share) Generate initial STEK succeeded: 11111111
[Nov 30 23:59:59.950] w NOTE: [stek_share] this server is the leader of term 3.
[Nov 30 23:59:59.960] w DIAG: (stek_share) staging key aaaaaaaa as generation 7
[Dec  1 00:00:00.010] i NOTE: [stek_share] installed 2 keys, current aaaaaaaa (generation 7)
[Dec  1 00:00:02.010] i NOTE: [stek_share] installed 2 keys, current bbbbbbbb (generation 8)
";
    const B: &str = "\
[Dec  1 00:00:00.001] i DIAG: (stek_share) installed 2 keys, current 99999999 (generation 6), staged generation 7
[Dec  1 00:00:00.030] i NOTE: [stek_share] installed 2 keys, current aaaaaaaa (generation 7)
no stamp, stek_share or not
";

    #[test]
    fn a_key_is_followed_through_all_servers_past_midnight() {
        let all = entries(&[one(B), one(A)]);
        let rotations = rotations(&all);
        assert_eq!(rotations.iter().map(|r| r.generation).collect::<Vec<_>>(), [6, 7, 8]);
        assert_eq!(rotations[1].spread(), Some(Duration::from_millis(20)));
        assert_eq!(rotations[1].handover(), Some(Duration::from_millis(70)));
        assert_eq!(rotations[1].first(), Some(Duration::from_millis(110)));
        assert_eq!(gaps(&rotations)[1], (8, Duration::from_millis(2000)));
        assert!(all.iter().any(|entry| entry.index == 1 && entry.event == Event::Leads(3)));
    }

    #[test]
    fn a_stamp_belongs_to_the_nearest_day() {
        // Begun at 23:59:50 of some day, read 20 s and three days later.
        let begun = Duration::from_millis(DAY * 20_000 + DAY - 10_000);
        let later = Duration::from_secs(20) + Duration::from_millis(3 * DAY);
        let at = |stamp, now: Duration| near(stamp, begun, now).as_millis() as u64;
        assert_eq!(at(DAY - 9_000, Duration::from_secs(20)), 1_000);
        assert_eq!(at(9_500, Duration::from_secs(20)), 19_500);
        assert_eq!(at(10_001, Duration::from_secs(20)), 20_001);
        assert_eq!(at(9_500, later), 3 * DAY + 19_500);
        assert_eq!(at(DAY - 9_000, later), 3 * DAY + 1_000);
    }

    #[test]
    fn lines_about_others_and_failures_are_understood() {
        let unreachable = "[x] NOTE: [stek_share] server 4 is unreachable; generation 7 goes on";
        let behind =
            "[x] WARNING: [stek_share] server 2 answers but has not installed generation 9";
        assert_eq!(event(unreachable), Some(Event::Without { member: 3, generation: 7 }));
        assert_eq!(event(behind), Some(Event::Without { member: 1, generation: 9 }));
        assert_eq!(event("[x] NOTE: [stek_share] server_list_file differs"), None);
        let error = "[Nov 22 03:12:55.563] [ET_NET 0] ERROR: something";
        assert_eq!(event(error), Some(Event::Failure(error.into())));
    }

    #[test]
    fn the_last_set_is_one_of_the_present_process() {
        let set = |fingerprint: &str, current, staged| Event::Installed {
            current,
            staged,
            fingerprint: fingerprint.into(),
        };
        let all = entries(&[one(A), one(B)]);
        assert_eq!(last_set(&all, 0), Some(&set("bbbbbbbb", Some(8), None)));
        let staged = entries(&[one(B.lines().next().unwrap_or_default())]);
        assert_eq!(last_set(&staged, 0), Some(&set("99999999", Some(6), Some(7))));
        let again = format!(
            "{A}{}",
            A.lines().next().unwrap_or_default().replace("Nov 30 23:59:59", "Dec  1 00:00:05")
        );
        assert_eq!(last_set(&entries(&[one(&again)]), 0), None);
        let own = "[Dec  1 00:00:00.001] i NOTE: [stek_share] installed 1 key, current 12345678 \
                   (this server's own)";
        assert_eq!(last_set(&entries(&[one(own)]), 0), Some(&set("12345678", None, None)));
    }
}
