//! What there must be before anybody can ask: an org, a project, and tokens for whoever starts a server on one machine.

use holm_domain::{OrgId, access::Role};
use holm_store::{Error, Org, Project, Store};
use secrecy::SecretString;

use crate::{
    clock::Clock,
    ids,
    ops::{runs::DEFAULT_PROJECT, tokens::token_issue},
};

/// The org that is there from the first start on.
pub const DEFAULT_ORG: &str = "default";

/// Which secrets the caller does not have (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// A token with the role `admin`.
    pub admin: bool,
    /// A token with the role `agent`.
    pub agent: bool,
}

/// What [`bootstrap`] found or made.
#[derive(Debug)]
pub struct Bootstrap {
    /// The default org.
    pub org: OrgId,
    /// The secret of a new admin token, if one was wanted.
    pub admin: Option<SecretString>,
    /// The secret of a new agent token, if one was wanted.
    pub agent: Option<SecretString>,
}

/// Makes the default org and its default project where they are missing, and the tokens that are wanted. Safe to repeat,
/// and with several servers at once. Whoever can call this holds the store itself, so it asks for no permission.
pub async fn bootstrap(store: &Store, clock: &Clock, wanted: Wanted) -> holm_store::Result<Bootstrap> {
    let org = default_org(store, clock).await?;
    let project = Project { id: ids::project(), org, name: DEFAULT_PROJECT.to_owned(), created_at: clock.now() };
    unless_there(store.project_create(&project).await)?;
    let mut made = Bootstrap { org, admin: None, agent: None };
    if wanted.admin {
        made.admin = Some(token_issue(store, clock, org, Role::Admin, "bootstrap".to_owned(), None).await?.1);
    }
    if wanted.agent {
        made.agent = Some(token_issue(store, clock, org, Role::Agent, "local agent".to_owned(), None).await?.1);
    }
    Ok(made)
}

async fn default_org(store: &Store, clock: &Clock) -> holm_store::Result<OrgId> {
    if let Some(org) = store.org_by_name(DEFAULT_ORG).await? {
        return Ok(org.id);
    }
    let org = Org { id: ids::org(), name: DEFAULT_ORG.to_owned(), created_at: clock.now() };
    unless_there(store.org_create(&org).await)?;
    // Whoever was first: the name leads to one org.
    let found = store.org_by_name(DEFAULT_ORG).await?;
    found.map(|org| org.id).ok_or(Error::NotFound { what: "org" })
}

fn unless_there(made: holm_store::Result<()>) -> holm_store::Result<()> {
    match made {
        Err(Error::Conflict { .. }) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::auth::hash;

    #[tokio::test]
    async fn bootstrap_is_repeatable_and_makes_only_what_is_wanted() {
        let (store, clock) = (Store::memory(), Clock::default());
        let first = bootstrap(&store, &clock, Wanted { admin: true, agent: true }).await.unwrap();
        let again = bootstrap(&store, &clock, Wanted { admin: false, agent: true }).await.unwrap();
        assert_eq!(first.org, again.org);
        assert!(again.admin.is_none());
        assert_eq!(store.project_list(first.org).await.unwrap().len(), 1);
        assert_eq!(store.token_list(first.org).await.unwrap().len(), 3);
        for (secret, role) in [(first.admin, Role::Admin), (first.agent, Role::Agent), (again.agent, Role::Agent)] {
            let digest = hash(secret.unwrap().expose_secret());
            let token = store.token_by_hash(&digest).await.unwrap().unwrap();
            assert_eq!((token.role, token.org), (role, first.org));
        }
    }
}
