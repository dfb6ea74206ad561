//! What the documentation says that tests hold lines to.

use std::path::Path;
use std::{fs, sync::OnceLock};

/// Whether docs/troubleshooting.md has a row for a line of the plugin's or a command's: one with a phrase in its
/// first column that the line has in it.
pub fn is_in_troubleshooting(line: &str) -> bool {
    static PHRASES: OnceLock<Vec<String>> = OnceLock::new();
    let phrases = PHRASES.get_or_init(|| {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/troubleshooting.md");
        let page = fs::read_to_string(page).unwrap_or_default();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        // Between backticks is each other part.
        let phrases = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2));
        phrases.filter(|phrase| phrase.contains(' ')).map(str::to_owned).collect()
    });
    phrases.iter().any(|phrase| line.contains(phrase.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_known_by_a_phrase_of_the_page() {
        assert!(is_in_troubleshooting("FILE: \"x\" is not there: looked for x; correct the path"));
        assert!(!is_in_troubleshooting("FILE: nobody has heard of this"));
    }
}
