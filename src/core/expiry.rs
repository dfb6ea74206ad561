//! When a certificate ends, and from when on that is worth a word: the one source of both for the log, the
//! status and the metrics.
//!
//! Invariants: a certificate is warned of no sooner than in the last third of its life, so that one that is
//! renewed in time is never warned of; and 30 days before its end at the soonest.

use std::fmt;
use std::time::Duration;

/// One day in seconds.
const DAY_S: u64 = 86_400;

/// How long before the end of a certificate of a long life the operator is warned, once each.
const AHEAD_S: [u64; 4] = [30 * DAY_S, 7 * DAY_S, DAY_S, 0];

/// The end of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Its subject in the one-line form.
    pub subject: String,
    /// Whether it is an authority's, without which the server's own is worth nothing.
    pub is_authority: bool,
    /// Until its end; zero afterwards.
    pub left: Duration,
    /// From its beginning to its end.
    pub life: Duration,
}

/// How long before its end a certificate of this life is warned of first.
pub fn warn_ahead(life: Duration) -> Duration {
    Duration::from_secs(AHEAD_S[0]).min(life / 3)
}

impl Expiry {
    /// How many of the moments to warn at have come.
    pub fn stage(&self) -> usize {
        let third = self.life / 3;
        AHEAD_S.iter().filter(|ahead| self.left <= Duration::from_secs(**ahead).min(third)).count()
    }

    /// Whether it is worth a warning.
    pub fn is_soon(&self) -> bool {
        self.stage() > 0
    }

    /// The end to speak of: the earliest that is worth a warning, else the earliest.
    pub fn first(endings: impl IntoIterator<Item = Expiry>) -> Option<Expiry> {
        endings.into_iter().min_by_key(|ending| (!ending.is_soon(), ending.left))
    }
}

/// `expires in 2 days`, and so on.
impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = self.left.as_secs();
        let (count, unit) = match left {
            0 => return f.write_str("has expired"),
            _ if left >= DAY_S => (left / DAY_S, "day"),
            _ if left >= 3600 => (left / 3600, "hour"),
            _ if left >= 60 => (left / 60, "minute"),
            _ => (left, "second"),
        };
        write!(f, "expires in {count} {unit}{}", if count == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(left_s: u64, life_s: u64) -> Expiry {
        Expiry {
            subject: "/CN=a".to_owned(),
            is_authority: false,
            left: Duration::from_secs(left_s),
            life: Duration::from_secs(life_s),
        }
    }

    #[test]
    fn a_long_life_is_warned_of_by_days_and_a_short_one_by_its_last_third() {
        let stages = |life: u64, lefts: &[u64]| -> Vec<usize> {
            lefts.iter().map(|left| ending(*left, life).stage()).collect()
        };
        let days = [31 * DAY_S, 30 * DAY_S, 7 * DAY_S, DAY_S, 0];
        assert_eq!(stages(365 * DAY_S, &days), [0, 1, 2, 3, 4]);
        assert_eq!(stages(30 * DAY_S, &[10 * DAY_S + 1, 10 * DAY_S, 7 * DAY_S]), [0, 1, 2]);
        assert_eq!(stages(DAY_S, &[DAY_S, 8 * 3600 + 1, 8 * 3600, 1, 0]), [0, 0, 3, 3, 4]);
        assert_eq!(stages(3600, &[3600, 1201, 1200]), [0, 0, 3]);
        assert_eq!(stages(0, &[0]), [4]);
        assert_eq!(warn_ahead(Duration::from_secs(3600)), Duration::from_secs(1200));
    }

    #[test]
    fn an_authority_is_not_hidden_by_a_fresh_certificate_that_ends_sooner() {
        let mut root = ending(20 * DAY_S, 3650 * DAY_S);
        root.subject = "/CN=root".to_owned();
        let first = |leaf| Expiry::first([leaf, root.clone()]).map(|ending| ending.subject);
        assert_eq!(first(ending(DAY_S, DAY_S)).as_deref(), Some("/CN=root"));
        assert_eq!(first(ending(3600, DAY_S)).as_deref(), Some("/CN=a"));
        assert_eq!(Expiry::first([]), None);
    }

    #[test]
    fn what_is_left_is_told_in_the_largest_unit_that_fits() {
        let words = |left| ending(left, 10).to_string();
        assert_eq!(words(0), "has expired");
        assert_eq!(words(1), "expires in 1 second");
        assert_eq!(words(119), "expires in 1 minute");
        assert_eq!(words(2 * 3600), "expires in 2 hours");
        assert_eq!(words(DAY_S), "expires in 1 day");
        assert_eq!(words(9 * DAY_S), "expires in 9 days");
    }
}
