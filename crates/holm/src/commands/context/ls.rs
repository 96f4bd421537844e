//! `holm context ls`: the servers that are known by name.

use serde::Serialize;

use crate::{
    config::LOCAL,
    output::{Cell, Tone, escaped},
    session::Session,
};

/// A context without its token.
#[derive(Serialize)]
struct Shown {
    name: String,
    server: String,
    project: Option<String>,
    current: bool,
}

/// Lists contexts; the one in use is marked.
pub fn execute(session: &Session) -> anyhow::Result<u8> {
    let config = &session.config;
    let current = config.context.as_ref().map_or(LOCAL, |context| context.value.as_str());
    let local = Shown {
        name: LOCAL.to_owned(),
        server: format!("unix:{}", session.home().socket().display()),
        project: None,
        current: current == LOCAL,
    };
    let named = config.file.contexts.iter().map(|(name, entry)| Shown {
        name: name.clone(),
        server: entry.server.clone(),
        project: entry.project.clone(),
        current: name == current,
    });
    let all: Vec<Shown> = std::iter::once(local).chain(named).collect();
    let output = session.output;
    if output.json {
        output.value(&all)?;
        return Ok(0);
    }
    let rows: Vec<[Cell; 3]> = all
        .iter()
        .map(|context| {
            let mark = if context.current { Cell(Tone::Good, "*".into()) } else { "".into() };
            [mark, escaped(&context.name).into(), escaped(&context.server).into()]
        })
        .collect();
    output.table(["", "NAME", "SERVER"], &rows)?;
    Ok(0)
}
