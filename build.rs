//! Compiles `ffi/ats.c` and turns `ffi/ats.h` into `OUT_DIR/ats.rs` for `src/host/sys.rs`.

use std::env;
use std::error::Error;
use std::path::PathBuf;

const HEADER: &str = "ffi/ats.h";
const SOURCE: &str = "ffi/ats.c";

fn main() -> Result<(), Box<dyn Error>> {
    for file in [HEADER, SOURCE, "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    // A plugin with threads of its own must stay mapped, whoever calls dlclose.
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");

    cc::Build::new()
        .file(SOURCE)
        .std("gnu11")
        .warnings(true)
        .extra_warnings(true)
        // The functions are for this crate alone; the host must not see them.
        .flag("-fvisibility=hidden")
        .compile("stek_ats");

    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or("cargo sets no OUT_DIR")?;
    bindgen::Builder::default()
        .header(HEADER)
        .allowlist_file(".*ffi/ats\\.h")
        .layout_tests(true)
        .generate_comments(false)
        .prepend_enum_name(false)
        .generate()?
        .write_to_file(out.join("ats.rs"))?;
    Ok(())
}
