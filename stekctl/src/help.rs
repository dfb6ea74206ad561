//! Help texts on the screen: clap writes each paragraph as one line, and leaves it to the terminal
//! to break it anywhere.

use anstream::adapter::strip_str;

/// The widest that a text is made, in columns.
const WIDEST: usize = 100;

/// The width where nobody tells one: that of a terminal as it comes.
const USUAL: usize = 80;

/// The narrowest; below that nothing is gained by breaking lines.
const NARROWEST: usize = 40;

/// The furthest to the right that the second column of a list may begin, so that it stays a column.
const MAX_HANG: usize = 32;

/// The terminal's width if the shell tells it, within the bounds.
pub fn width() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    told.unwrap_or(USUAL).clamp(NARROWEST, WIDEST)
}

/// Breaks long lines at blanks. What follows a break stands below the line's text; in a list, below the
/// second column. Escape sequences take no room.
pub fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let indent = " ".repeat(hang(&strip_str(line).to_string()));
        let (mut column, mut is_first) = (0, true);
        for word in line.split(' ') {
            let length = strip_str(word).to_string().chars().count();
            if !is_first && length > 0 && column > indent.len() && column + 1 + length > width {
                out.truncate(out.trim_end_matches(' ').len());
                out = out + "\n" + &indent;
                column = indent.len();
            } else if !is_first {
                out.push(' ');
                column += 1;
            }
            out += word;
            column += length;
            is_first = false;
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// Where the lines begin that a line is broken into.
fn hang(line: &str) -> usize {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let rest = line.get(indent..).unwrap_or_default();
    let second = rest.find("  ").filter(|_| indent > 0).map(|gap| {
        let behind = rest.get(gap..).unwrap_or_default();
        indent + gap + behind.len() - behind.trim_start_matches(' ').len()
    });
    second.filter(|column| *column < line.len() && *column <= MAX_HANG).unwrap_or(indent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_where_they_are_indented() {
        let text =
            "Usage: x\n\n  -a  short\n      one two three four five\nno-blank-in-this-line\n";
        let wrapped = wrap(text, 16);
        let expected = "Usage: x\n\n  -a  short\n      one two\n      three four\n      \
                        five\nno-blank-in-this-line\n";
        assert_eq!(wrapped, expected);
        assert_eq!(wrap(text, 100), text);
    }

    #[test]
    fn a_list_keeps_its_columns_and_colours_take_no_room() {
        let text = "  \u{1b}[1mstatus\u{1b}[0m   one two three four five\n  \u{1b}[1mx\u{1b}[0m        six\n";
        let expected = "  \u{1b}[1mstatus\u{1b}[0m   one two\n           three four\n           five\n  \u{1b}[1mx\u{1b}[0m        six\n";
        assert_eq!(wrap(text, 22), expected);
    }
}
