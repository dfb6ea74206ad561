//! What the boxes' logs tell about keys: when which box held which key, and since when it used it.
//!
//! Traffic Server stamps each line with local time to the millisecond, `[Nov 22 03:12:55.563]`. All
//! boxes of a fleet run on one machine, so that their stamps can be compared. A box writes a line
//! about a set just after its ticket context has it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fleet::Fleet;

/// Milliseconds of a day; stamps are taken without their date, whose year is missing.
const DAY: u64 = 86_400_000;

/// Something that one box wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, counted from the first line of any box. Whole milliseconds.
    pub at: Duration,
    /// Which box, by its index in the fleet.
    pub index: usize,
    /// What.
    pub event: Event,
}

/// The lines that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This box, which leads, begins a handover to a generation.
    Staging(u64),
    /// The ticket context has a new set.
    Installed {
        /// The agreed generation that encrypts; `None` for a key of the box's own.
        current: Option<u64>,
        /// The generation that is held but not used yet.
        staged: Option<u64>,
        /// The encrypting key's fingerprint.
        fingerprint: String,
    },
    /// This box leads now, in this term.
    Leads(u64),
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
    /// When each box began to encrypt with it, by index.
    pub uses: BTreeMap<usize, Duration>,
}

impl Rotation {
    /// When the first box used it.
    pub fn first(&self) -> Option<Duration> {
        self.uses.values().min().copied()
    }

    /// From the first to the last box's use.
    pub fn spread(&self) -> Option<Duration> {
        Some(*self.uses.values().max()? - self.first()?)
    }

    /// From the leader's first step to the last box's use.
    pub fn handover(&self) -> Option<Duration> {
        self.uses.values().max()?.checked_sub(self.staging?)
    }
}

/// All that the fleet's boxes wrote, in the order of time.
pub fn read(fleet: &Fleet) -> Vec<Entry> {
    let texts = fleet.boxes.iter().map(|ats| (ats.diags(), ats.debug_lines()));
    entries(&texts.collect::<Vec<_>>())
}

/// The generations that boxes used, in their order.
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
/// box used is no rotation, so that it makes the gap around it longer.
pub fn gaps(rotations: &[Rotation]) -> Vec<(u64, Duration)> {
    let firsts = rotations.iter().filter_map(|r| Some((r.generation, r.first()?)));
    let firsts: Vec<_> = firsts.collect();
    firsts.windows(2).map(|pair| (pair[1].0, pair[1].1.saturating_sub(pair[0].1))).collect()
}

/// The set that a box has installed since its process last began, if any.
pub fn last_set(entries: &[Entry], index: usize) -> Option<&Event> {
    let own = entries.iter().rev().filter(|entry| entry.index == index).map(|entry| &entry.event);
    let since_start = own.take_while(|event| **event != Event::Started);
    since_start.into_iter().find(|event| matches!(event, Event::Installed { .. }))
}

/// `texts[i]` are the diags.log and the debug lines of the box at index `i`.
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
    // The two files of a box have no common order within a millisecond, but keys have one.
    all.sort_by_key(|entry| (entry.at, rank(&entry.event)));
    all
}

fn rank(event: &Event) -> (bool, Option<u64>, Option<u64>) {
    match event {
        Event::Started => (false, None, None),
        Event::Installed { current, staged, .. } => (true, *current, *staged),
        Event::Staging(_) | Event::Leads(_) => (true, None, None),
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
    fn a_key_is_followed_through_all_boxes_past_midnight() {
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
