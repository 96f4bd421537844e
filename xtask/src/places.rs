//! Where things are: the checkout, its target folder, the binary.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The top of the checkout, found from this crate's own folder.
pub fn root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
    let root = Path::new(&manifest).parent().context("xtask has a folder above it")?.to_path_buf();
    ensure!(root.join("Cargo.lock").is_file(), "{} is not the top of a checkout", root.display());
    Ok(root)
}

/// The folder into which cargo builds.
pub fn target() -> Result<PathBuf> {
    let root = root()?;
    Ok(std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir)))
}

/// The folder with the kernel and its modules that the tests of virtual machines boot.
pub fn test_kernel() -> Result<PathBuf> {
    Ok(target()?.join("test-kernel"))
}

/// The folder for what is to lie on a disk, whatever the folder for temporary files is.
pub fn on_disk() -> PathBuf {
    PathBuf::from("/var/tmp")
}

/// Whether this process has root's rights.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Looks a program up in PATH and in the folders that only root's PATH has.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
