//! Agreement: openraft behind one module.
