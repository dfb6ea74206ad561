//! What clients say first: the name of the site in a ClientHello.

use stek_share::core::ticket_scope::{server_name, server_name_extension, Binding};

/// What is found is a part of the message, and binds like the same name in other letters.
pub fn name(bytes: &[u8]) {
    let inside = |part: &[u8]| bytes.as_ptr_range().contains(&part.as_ptr()) || part.is_empty();
    for extension in [server_name_extension(bytes), Some(bytes)].into_iter().flatten() {
        assert!(inside(extension) && extension.len() <= bytes.len());
        if let Some(name) = server_name(extension) {
            assert!(inside(name) && name.len() + 5 == extension.len());
            let other = name.to_ascii_uppercase();
            assert_eq!(Binding::new(name, 3).finish(), Binding::new(&other, 3).finish());
            assert_ne!(Binding::new(name, 3).finish(), Binding::new(name, 0).finish());
        }
    }
}
