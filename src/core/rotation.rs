//! When to stage, when to activate, when a key is too old.
