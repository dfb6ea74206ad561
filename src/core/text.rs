//! Texts as a status, a line or a message may carry them: bounded, and nothing that a terminal acts
//! on.

/// Makes an enum each of whose values has a word, with a list of all of them.
macro_rules! words {
    ($(#[$attribute:meta])* pub enum $name:ident {
        $($(#[$meaning:meta])* $value:ident = $word:literal,)*
    }) => {
        $(#[$attribute])*
        pub enum $name {
            $($(#[$meaning])* $value,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: [$name; [$($word),*].len()] = [$($name::$value),*];

            /// The word for it.
            pub fn word(self) -> &'static str {
                match self {
                    $($name::$value => $word,)*
                }
            }
        }
    };
}
pub(crate) use words;

/// The most characters of one text in a status; a certificate's subject is the longest.
pub const MAX_WORDS: usize = 1024;

/// Whether a text is one that [`readable`] gives.
pub fn is_readable(text: &str) -> bool {
    text.len() <= MAX_WORDS && !text.chars().any(char::is_control)
}

/// The first 8 hex digits of a digest, which is as much of it as a person compares.
pub fn short_digest(digest: &[u8]) -> String {
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// A text as a status may carry it: cut at [`MAX_WORDS`], control characters replaced.
pub fn readable(text: &str) -> String {
    let mut readable = String::new();
    for c in text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }) {
        if readable.len() + c.len_utf8() > MAX_WORDS {
            break;
        }
        readable.push(c);
    }
    readable
}
