//! `holm org`: make orgs, list them, and what each may have and do at most.

use holm_api::{
    client::Client,
    orgs::{CreateOrg, OrgLimitsView, OrgView, SetOrgLimits},
};
use holm_domain::org_limits::OrgOverrides;

use crate::{
    commands::ago,
    output::{Cell, escaped},
    session::Session,
};

/// Reads the name or the id of an org.
pub fn name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !text.is_empty()
        && text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(is_plain)
    {
        return Ok(text.to_owned());
    }
    Err("give the name of an org, or its id".to_owned())
}

/// Reads `LIMIT=VALUE`.
pub fn limit(text: &str) -> Result<(String, Option<u64>), String> {
    let mut set = OrgOverrides::default();
    let limit = set.set_text(text)?;
    Ok((limit.as_str().to_owned(), set.of(limit)))
}

/// Makes an org and prints the secret of its first token alone, so that it can be piped into a file.
pub async fn create(session: &Session, name: &str) -> anyhow::Result<u8> {
    let new = session.client().await?.org_create(&CreateOrg { name: name.to_owned() }).await?;
    let output = session.output;
    if output.json {
        output.value(&new)?;
        return Ok(0);
    }
    let (org, token) = (new.org.id, new.admin.token.id);
    output.note(format!("org {} ({org}); its admin token {token} is shown this once:", escaped(&new.org.name)));
    output.line(&new.admin.secret)?;
    Ok(0)
}

/// Lists orgs.
pub async fn list(session: &Session) -> anyhow::Result<u8> {
    let list = session.client().await?.org_list().await?;
    let output = session.output;
    if output.json {
        output.value(&list.orgs)?;
        return Ok(0);
    }
    let row = |org: &OrgView| -> [Cell; 3] {
        [org.id.to_string().into(), escaped(&org.name).into(), ago(org.created_at).into()]
    };
    output.table(["ORG", "NAME", "CREATED"], &list.orgs.iter().map(row).collect::<Vec<_>>())?;
    Ok(0)
}

/// Shows the limits of an org.
pub async fn show(session: &Session, org: Option<&str>) -> anyhow::Result<u8> {
    let client = session.client().await?;
    let org = match org {
        Some(org) => org.to_owned(),
        None => client.whoami().await?.org.to_string(),
    };
    print(session, &client.org_limits(&org).await?)
}

/// Sets limits of an org.
pub async fn set(session: &Session, org: &str, limits: &[(String, Option<u64>)]) -> anyhow::Result<u8> {
    let client: Client = session.client().await?;
    let body = SetOrgLimits { limits: limits.iter().cloned().collect() };
    print(session, &client.org_limits_set(org, &body).await?)
}

fn print(session: &Session, view: &OrgLimitsView) -> anyhow::Result<u8> {
    let output = session.output;
    if output.json {
        output.value(view)?;
        return Ok(0);
    }
    output.line(format!("{} ({}): {} running", escaped(&view.org_name), view.org, view.runs_running))?;
    let rows = view.limits.iter().map(|(name, limit)| -> [Cell; 3] {
        let of = if limit.is_own { "this org" } else { "the server" };
        [escaped(name).into(), limit.value.to_string().into(), of.to_owned().into()]
    });
    output.table(["LIMIT", "VALUE", "SET FOR"], &rows.collect::<Vec<_>>())?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_or_the_default() {
        assert_eq!(limit("submits_per_minute=60"), Ok(("submits_per_minute".to_owned(), Some(60))));
        assert_eq!(limit("runs_running_max=default"), Ok(("runs_running_max".to_owned(), None)));
        for bad in ["submits_per_minute", "submits_per_minute=", "submits_per_minute=0", "sandwiches=1", "=1"] {
            assert!(limit(bad).is_err(), "{bad}");
        }
        for bad in ["", "a/b", "..", "a b", "a?b"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(name("default").as_deref(), Ok("default"));
    }
}
