//! Builds the guest as one static program, for [`holm_runtime::guest`] to embed.
//!
//! The guest is no member of the workspace: it needs flags of its own (a static C runtime) and must not share features with
//! the host's programs. So cargo is called once more, with a target directory of its own and without the variables that
//! the outer cargo sets for this script, or another compiler in front of it; a plain `cargo build` of the workspace is
//! enough. The directory lies beside those of the build scripts: clippy and fuzzing have this script run once more each,
//! with a directory of their own, and find the guest built.

use std::{env, error::Error, ffi::OsString, fs, path::Path, path::PathBuf, process::Command};

/// Variables of the outer cargo that the inner one needs: where its cache is, whether it may use the network, which of the
/// processors are its own.
const KEPT: &[&str] = &["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "CARGO_HTTP_CAINFO", "CARGO_HTTP_PROXY"];

fn main() -> Result<(), Box<dyn Error>> {
    let crates = path("CARGO_MANIFEST_DIR")?.join("..");
    let guest = crates.join("guest");
    for source in ["guest/src", "guest/Cargo.toml", "guest/Cargo.lock", "wire/src", "wire/Cargo.toml", "../Cargo.toml"]
    {
        println!("cargo:rerun-if-changed={}", crates.join(source).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let out = path("OUT_DIR")?;
    let target_dir = out.ancestors().nth(3).ok_or("OUT_DIR is not below a folder of cargo's")?.join("guest");
    // With --target, the flags reach the guest only and not the build scripts and macros that run on this machine.
    let triple = env::var("TARGET")?;
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    cargo.args(["build", "--release", "--locked", "--quiet", "--target", &triple]);
    cargo.arg("--manifest-path").arg(guest.join("Cargo.toml")).arg("--target-dir").arg(&target_dir);
    for (name, _) in env::vars_os().filter(|(name, _)| is_of_outer_cargo(name)) {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("cargo build of {} ended with {status}", guest.display()).into());
    }
    embed(&target_dir.join(triple).join("release/holm-guest"), &out.join("holm-guest"))
}

/// Copies only what differs, so that an unchanged guest does not rebuild what embeds it.
fn embed(built: &Path, embedded: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = fs::read(built)?;
    if fs::read(embedded).ok().as_ref() != Some(&bytes) {
        fs::write(embedded, bytes)?;
    }
    Ok(())
}

fn path(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set"))
}

fn is_of_outer_cargo(name: &OsString) -> bool {
    let Some(name) = name.to_str() else { return false };
    let of_cargo = ["CARGO_", "DEP_", "RUSTC", "RUSTDOC"].iter().any(|prefix| name.starts_with(prefix));
    let of_flags = ["RUSTFLAGS", "CARGO", "OUT_DIR", "TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS"];
    (of_cargo || of_flags.contains(&name)) && !KEPT.contains(&name)
}
