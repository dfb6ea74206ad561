//! Help texts on the screen: clap writes each paragraph as one line, and leaves it to the terminal
//! to break it anywhere.

/// The widest that a text is made, in columns.
const WIDEST: usize = 100;

/// The narrowest; below that nothing is gained by breaking lines.
const NARROWEST: usize = 40;

/// The terminal's width if the shell tells it, within the bounds.
pub fn width() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    told.unwrap_or(WIDEST).clamp(NARROWEST, WIDEST)
}

/// Breaks long lines at blanks. What follows a break is indented as its line is. Escape sequences
/// count as text, which is no loss where they occur: in headings and names, at a line's beginning.
pub fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start_matches(' ').len();
        let (mut column, mut is_first) = (indent, true);
        out += &" ".repeat(indent);
        for word in line.split(' ').skip(indent) {
            let length = word.chars().count();
            if !is_first && column + 1 + length > width {
                out.push('\n');
                out += &" ".repeat(indent);
                column = indent;
            } else if !is_first {
                out.push(' ');
                column += 1;
            }
            out += word;
            column += length;
            is_first = false;
        }
        out.push('\n');
    }
    out
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
}
