//! `holm config check`: contradictions and services that cannot be reached.

use crate::{
    config::{
        Environment,
        check::{Severity, contradictions, unreachable},
    },
    output::escaped,
    session::Session,
};

/// Prints what was found; the exit code is 1 if anything of it is an error.
pub async fn execute(session: &Session, offline: bool) -> anyhow::Result<u8> {
    let config = &session.config;
    let env = Environment::of_process();
    let mut findings = contradictions(config, &env);
    if !offline {
        findings.extend(unreachable(config, &env).await);
    }
    let output = session.output;
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    if output.json {
        output.value(&findings)?;
        return Ok(u8::from(failed));
    }
    for finding in &findings {
        let word = if finding.severity == Severity::Error { "error" } else { "warning" };
        let text = escaped(&format!("{}: {}; {}", finding.at, finding.problem, finding.way_out));
        output.line(format!("{word}: {text}"))?;
    }
    if findings.is_empty() {
        output.line(format!("{}: nothing is wrong", config.path.display()))?;
    }
    Ok(u8::from(failed))
}
