//! What happened, in order, as one number: two runs of a seed that differ anywhere differ here.

use crate::promises::seconds;

/// See the module's head.
pub struct EventLog {
    digest: u64,
    print: bool,
    /// What a scenario tells its reader, since this was last asked for.
    lines: Option<Vec<String>>,
}

impl EventLog {
    /// An empty log; whether what is said is printed, too.
    pub fn new(print: bool) -> EventLog {
        // FNV-1a, 64 bits.
        EventLog { digest: 0xcbf2_9ce4_8422_2325, print, lines: None }
    }

    /// Something that is not worth words happened to `who`.
    pub fn mix(&mut self, now: u64, who: u32, what: u64) {
        for part in [now, u64::from(who), what] {
            self.bytes(&part.to_le_bytes());
        }
    }

    /// Something worth words happened to `who`, 0 for the world.
    pub fn say(&mut self, now: u64, who: u32, words: impl FnOnce() -> String) {
        let words = words();
        self.mix(now, who, 3);
        self.bytes(words.as_bytes());
        if self.print {
            println!("{:>12} {who:>2} {words}", seconds(now));
        }
        if let Some(lines) = &mut self.lines {
            if !words.starts_with("Debug: ") {
                let words = words.strip_prefix("Note: ").unwrap_or(&words);
                let who = if who == 0 { String::new() } else { who.to_string() };
                lines.push(format!("{:>10} {who:>2} {words}", seconds(now)));
            }
        }
    }

    /// From now on what happens is kept for a reader, without details for those who develop.
    pub fn keep_lines(&mut self) {
        self.lines = Some(Vec::new());
    }

    /// All lines since this was last asked.
    pub fn take_lines(&mut self) -> Vec<String> {
        self.lines.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The log as one number.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
