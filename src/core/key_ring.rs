//! The agreed keys.
