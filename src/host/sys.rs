//! What bindgen makes of `ffi/ats.h`. For [`super::ats`] alone.
#![allow(missing_docs, non_camel_case_types, dead_code)]

include!(concat!(env!("OUT_DIR"), "/ats.rs"));
