//! `cargo xtask setup`: what the tests need beside Rust, git and a C linker.
//!
//! As root on Debian or a relative of it, what is missing is installed by apt; otherwise it is named. Nothing happens, and
//! nothing is asked of the network, when all is there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{exec, places, postgres, say};

/// The arguments of `setup`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Arguments {
    /// Only say what is missing, and fail if anything is.
    #[arg(long)]
    pub check: bool,
    /// Also what the benchmarks compare with (bubblewrap, runc, podman) and Python's own test suite.
    #[arg(long)]
    pub all: bool,
}

/// Something that must be on the machine, and the package of Debian that brings it.
struct Need {
    what: &'static str,
    package: String,
    present: bool,
}

/// The package that always depends on the newest kernel for clouds.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";

/// Installs what is missing.
pub fn setup(arguments: &Arguments) -> Result<()> {
    let missing: Vec<Need> = needs(arguments.all).into_iter().filter(|need| !need.present).collect();
    let kernel = places::test_kernel()?;
    let kernel_missing = !has_kernel(&kernel);
    for need in &missing {
        say::note(&format!("missing: {} (package {})", need.what, need.package));
    }
    if kernel_missing {
        say::note(&format!(
            "missing: a kernel for virtual machines in {} (package {KERNEL_METAPACKAGE})",
            kernel.display()
        ));
    }
    if missing.is_empty() && !kernel_missing {
        return Ok(());
    }
    ensure!(!arguments.check, "something is missing: run `cargo xtask setup`");
    ensure!(
        places::program("apt-get").is_some(),
        "there is no apt-get here: install what is missing by your own means"
    );
    if places::is_root() {
        // Lists may be old or absent; asked for only now that something has to be fetched.
        say::note("apt-get update");
        exec::read(Command::new("apt-get").arg("update"))?;
        install(&missing)?;
    } else if !missing.is_empty() {
        let packages: Vec<&str> = missing.iter().map(|need| need.package.as_str()).collect();
        bail!("only root can install packages: run `sudo apt-get install {}`", packages.join(" "));
    }
    if kernel_missing { fetch_kernel(&kernel) } else { Ok(()) }
}

fn needs(all: bool) -> Vec<Need> {
    let program = |name: &'static str, package: &str| Need {
        what: name,
        package: package.to_owned(),
        present: places::program(name).is_some(),
    };
    let python = |module: &'static str, package: &str| Need {
        what: module,
        package: package.to_owned(),
        present: Path::new("/usr/lib/python3/dist-packages").join(module).exists(),
    };
    let mut needs = vec![
        Need { what: "PostgreSQL's server", package: "postgresql".to_owned(), present: postgres::bin_dir().is_ok() },
        program("qemu-system-x86_64", "qemu-system-x86"),
        program("setpriv", "util-linux"),
        program("ip", "iproute2"),
        // Clients of TLS, each with its own way to say what it trusts.
        program("curl", "curl"),
        program("wget", "wget"),
        program("git", "git"),
        program("openssl", "openssl"),
        program("node", "nodejs"),
        program("npm", "npm"),
        python("pip", "python3-pip"),
        python("requests", "python3-requests"),
        python("grpc", "python3-grpcio"),
        python("websockets", "python3-websockets"),
        // libFuzzer is C++.
        program("c++", "g++"),
        // The sandbox sees the host's /usr: an interpreter elsewhere would not be found inside.
        Need {
            what: "/usr/bin/python3",
            package: "python3".to_owned(),
            present: Path::new("/usr/bin/python3").exists(),
        },
        Need { what: "a static busybox", package: "busybox-static".to_owned(), present: has_static_busybox() },
    ];
    if all {
        needs.extend([program("bwrap", "bubblewrap"), program("runc", "runc"), program("podman", "podman")]);
        needs.extend(python_testsuite());
    }
    needs
}

/// busybox and busybox-static bring the same file; only the latter runs in an empty root.
fn has_static_busybox() -> bool {
    Path::new("/usr/share/doc/busybox-static").exists() && places::program("busybox").is_some()
}

fn python_testsuite() -> Option<Need> {
    let version = exec::read(Command::new("/usr/bin/python3").arg("--version")).ok()?;
    let number = version.trim().strip_prefix("Python ")?;
    let minor = number.rsplit_once('.')?.0;
    let present = Path::new(&format!("/usr/lib/python{minor}/test/test_json")).exists();
    Some(Need { what: "Python's test suite", package: format!("libpython{minor}-testsuite"), present })
}

fn install(missing: &[Need]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package.as_str()).collect();
    say::note(&format!("apt-get install {}", packages.join(" ")));
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["install", "--yes", "--no-install-recommends"]).args(&packages);
    exec::read(&mut command)?;
    Ok(())
}

fn has_kernel(dir: &Path) -> bool {
    let entries = fs::read_dir(dir.join("boot")).into_iter().flatten().flatten();
    let found = entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    found && dir.join("lib/modules").is_dir()
}

/// Unpacks Debian's kernel without installing it: `boot/vmlinuz-…` and `lib/modules/…` under `dir`.
fn fetch_kernel(dir: &Path) -> Result<()> {
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", "--no-recommends", "--no-suggests", KERNEL_METAPACKAGE]);
    let package = kernel_package(&exec::read(&mut depends)?)
        .with_context(|| format!("{KERNEL_METAPACKAGE} is not known to apt: run `apt-get update` as root"))?;
    say::note(&format!("unpacking {package} into {}", dir.display()));
    let parent = dir.parent().context("the kernel's folder has one above it")?;
    fs::create_dir_all(parent)?;
    let work = tempfile::Builder::new().prefix("test-kernel-").tempdir_in(parent)?;
    exec::read(Command::new("apt-get").args(["download", &package]).current_dir(work.path()))?;
    let archive = find_archive(work.path())?;
    let unpacked = work.path().join("unpacked");
    exec::read(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    ensure!(has_kernel(&unpacked), "{package} has no kernel in it");
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    // Moved into place as a whole, so that an interruption never leaves half a kernel behind.
    fs::rename(&unpacked, dir).context("cannot move the kernel into place")
}

fn kernel_package(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::to_owned).find(|name| name.starts_with("linux-image-"))
}

fn find_archive(dir: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get download left no archive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_kernel_is_read_from_what_apt_says() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(kernel_package(depends).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(kernel_package("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn a_kernel_without_modules_does_not_count() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("boot")).expect("a folder");
        fs::write(dir.path().join("boot/vmlinuz-6.1"), b"").expect("a file");
        assert!(!has_kernel(dir.path()));
        fs::create_dir_all(dir.path().join("lib/modules")).expect("a folder");
        assert!(has_kernel(dir.path()));
    }
}
