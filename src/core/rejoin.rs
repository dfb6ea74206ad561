//! What a box that lost its memory may do.
