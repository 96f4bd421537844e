//! `holm context use`: chooses the server that is used from now on.

use crate::{
    commands::Usage,
    config::{LOCAL, file},
    session::Session,
};

/// Chooses a context.
pub fn execute(session: &Session, name: &str) -> anyhow::Result<u8> {
    let config = &session.config;
    if name != LOCAL && !config.file.contexts.contains_key(name) {
        return Err(Usage::new("NAME", name, "give one of `holm context ls`, or make it with `holm login`").into());
    }
    file::change(&config.path, &file::Change::Use(name))?;
    session.output.note(format!("context `{name}` is used from now on"));
    Ok(0)
}
