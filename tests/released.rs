//! What is released tells nothing of where it was built.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env;
use std::fs;
use std::path::PathBuf;

#[test]
fn no_directory_of_the_builder_is_in_plugin_or_command() {
    let Some(plugin) = env::var_os("STEK_SHARE_SO").map(PathBuf::from) else {
        println!("not looked at: STEK_SHARE_SO names no released plugin");
        return;
    };
    let home = |variable: &str| env::var(variable).unwrap_or_default();
    let places = [
        env!("CARGO_MANIFEST_DIR").to_owned(),
        home("HOME"),
        home("CARGO_HOME"),
        home("RUSTUP_HOME"),
        env::current_dir().unwrap().display().to_string(),
    ];
    let in_bytes = |bytes: &[u8], text: &str| {
        bytes.windows(text.len()).position(|window| window == text.as_bytes())
    };
    let remedy = "built before .cargo/config.toml was there, or with another RUSTC_WRAPPER? cargo \
                  clean --release, and build again";
    for file in [plugin.clone(), plugin.with_file_name("stekctl")] {
        let bytes = fs::read(&file).unwrap();
        let file = file.display();
        assert!(in_bytes(&bytes, "cargo/registry/").is_some(), "{file}: no source is named at all");
        // Such as /root; what is shorter than that says nothing of anybody.
        for place in places.iter().filter(|place| place.len() > 4) {
            let at = in_bytes(&bytes, &format!("{place}/"));
            assert_eq!(at, None, "{file} names {place}; {remedy}");
        }
    }
}
