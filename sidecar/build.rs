//! Linker options of the sidecar.

use std::{env, process::Command};

/// First version of glibc whose loader reads packed relocations.
const GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Some 50,000 addresses are corrected when the program starts. Not packed, each is 24 bytes that the loader reads: more than a
    // megabyte of an idle sidecar. A sidecar runs with the glibc of the machine that it is built on.
    let is_native = env::var("HOST").ok() == env::var("TARGET").ok();
    if is_native && glibc().is_some_and(|version| version >= GLIBC) {
        println!("cargo::rustc-link-arg-bin=larder-sidecar=-Wl,-z,pack-relative-relocs");
    }
}

/// Returns the version of this machine's glibc, if it has one.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
