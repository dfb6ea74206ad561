//! Traffic Server: the only room that knows it, and the only one with `unsafe`.
