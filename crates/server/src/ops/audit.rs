//! The audit log of an org: what is told in it, and reading it.
//!
//! What is told goes to the store with the change that it tells of, which are there together or not at all. It is told in the log
//! of the org of whoever did it; what belongs to the deployment (keys, orgs, limits, pools), in that of the deployment's own org.

use holm_api::audit::{AuditPage, AuditRecord};
use holm_domain::{
    OrgId,
    access::Token,
    audit::{Action, Actor, Entry},
};

use crate::{app::App, problem::Failure};

/// That the holder of a token did something. A name says more to people than an id.
pub(super) fn told(app: &App, by: &Token, action: Action, subject: impl std::fmt::Display) -> Entry {
    Entry::new(by.org, app.now(), Actor::Token(by.id), action, subject).with("by_name", &by.name)
}

/// The records of the org after a number, oldest first, and the head of its log.
pub async fn audit_page(app: &App, org: OrgId, after: u64, limit: u32) -> Result<AuditPage, Failure> {
    // The head first: what is appended meanwhile is among the records or of the next page.
    let head = app.store.audit_head(org).await?;
    let records = app.store.audit_page(org, after, limit).await?;
    Ok(AuditPage { org, head: head.into(), records: records.into_iter().map(AuditRecord::from).collect() })
}

#[cfg(test)]
mod tests;
