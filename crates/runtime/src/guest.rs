//! The guest: the static program that is PID 1 of every sandbox, built with this crate and carried in it.
//!
//! It is handed on as a sealed file in memory, so that nothing has to be installed, no path of the host is seen inside, and
//! nobody, not even who holds the descriptor, can change what is executed.

use std::{io::Write, os::fd::AsFd, os::fd::OwnedFd, sync::OnceLock};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};

use crate::{Context, Error};

static BINARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holm-guest"));
static SEALED: OnceLock<OwnedFd> = OnceLock::new();

/// The program, as it stands in a file.
pub fn binary() -> &'static [u8] {
    BINARY
}

/// A descriptor of the program in a file in memory that nobody can change any more. All share one copy.
pub fn memfd() -> Result<OwnedFd, Error> {
    let sealed = match SEALED.get() {
        Some(sealed) => sealed,
        None => {
            let made = seal()?;
            SEALED.get_or_init(|| made)
        }
    };
    sealed.as_fd().try_clone_to_owned().context(|| "duplicating the guest's descriptor".to_owned())
}

fn seal() -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know MFD_EXEC, and make every such file executable.
    let fd = match memfd_create("holm-guest", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create("holm-guest", flags),
        other => other,
    };
    let mut file = std::fs::File::from(fd.context(|| "making the guest's file in memory".to_owned())?);
    file.write_all(BINARY).context(|| "writing the guest's file in memory".to_owned())?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .context(|| "sealing the guest's file in memory".to_owned())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Read, os::unix::fs::FileExt};

    #[test]
    fn is_static_and_whole() {
        let elf = binary();
        assert_eq!(&elf[..4], b"\x7fELF");
        // PT_INTERP (3) among the program headers would mean a dynamic loader that no image is sure to have.
        let u16_at = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
        let headers = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
        let interpreters = (0..u16_at(56)).filter(|n| elf[headers + n * u16_at(54)] == 3).count();
        assert_eq!(interpreters, 0, "the guest needs a dynamic loader");
    }

    #[test]
    fn no_wall_of_it_can_be_taken_away() {
        // The switch that the guest's own tests have, and only they (guest/src/walls.rs).
        let switch = b"HOLM_GUEST_WALLS_DOWN";
        assert!(!binary().windows(switch.len()).any(|window| window == switch));
    }

    #[test]
    fn cannot_be_changed() {
        let mut file = File::from(memfd().unwrap());
        let error = file.write_at(b"x", 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()));
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(Errno::PERM.raw_os_error()));
        let mut read = vec![0; binary().len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == binary());
        assert!(file.flush().is_ok() && file.read(&mut []).is_ok());
    }
}
