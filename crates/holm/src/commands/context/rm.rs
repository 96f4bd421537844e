//! `holm context rm`: forgets a server and its token.

use crate::{commands::Usage, config::file, session::Session};

/// Removes a context.
pub fn execute(session: &Session, name: &str) -> anyhow::Result<u8> {
    let config = &session.config;
    if !config.file.contexts.contains_key(name) {
        return Err(Usage::new("NAME", name, "give one of `holm context ls` other than `local`").into());
    }
    file::change(&config.path, &file::Change::Remove(name))?;
    session.output.note(format!("context `{name}` is removed; its token still works until it is revoked"));
    Ok(0)
}
