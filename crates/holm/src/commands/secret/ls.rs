//! `holm secret ls`: the secrets of the org and of its projects, without their values.

use holm_api::secrets::SecretView;
use holm_domain::egress::bound::Bound;

use crate::{
    commands::ago,
    output::{Cell, escaped},
    session::Session,
};

/// The most characters of a rule that are shown in the table.
const RULE_SHOWN_MAX: usize = 40;

/// Lists secrets.
pub async fn execute(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.secret_list().await?;
    let output = session.output;
    if output.json {
        output.value(&list.secrets)?;
        return Ok(0);
    }
    let row = |secret: &SecretView| -> [Cell; 5] {
        let scope = secret.project.as_deref().map_or_else(|| "org".to_owned(), escaped);
        let (version, updated) = (secret.version.to_string(), ago(secret.updated_at));
        [secret.name.as_str().into(), scope.into(), version.into(), shown(&secret.bound).into(), updated.into()]
    };
    let rows: Vec<_> = list.secrets.iter().map(row).collect();
    output.table(["NAME", "SCOPE", "VERSION", "FOR", "UPDATED"], &rows)?;
    Ok(0)
}

/// The first rule, and how many there are beside it; `--json` has all of them.
fn shown(bound: &Bound) -> String {
    let texts = bound.texts();
    let first = texts.first().map_or("", String::as_str);
    let mut shown: String = first.chars().take(RULE_SHOWN_MAX).collect();
    if shown.len() < first.len() {
        shown.push('…');
    }
    match texts.len() {
        0 | 1 => shown,
        many => format!("{shown} +{}", many - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_shown_in_one_short_cell() {
        let long = format!("api.example.org/{}", "a".repeat(60));
        for (rules, cell) in [
            (&["anywhere"][..], "anywhere"),
            (&["GET,POST api.example.org/v1"], "GET,POST api.example.org/v1"),
            (&["api.example.org", "git.example.org", "other.example"], "api.example.org +2"),
            (&[&long, "git.example.org"], &format!("api.example.org/{}… +1", "a".repeat(24))),
        ] {
            assert_eq!(shown(&Bound::read(rules).unwrap()), cell);
        }
    }
}
