//! Orgs: make them, list them; what each may have and do at most.

pub mod create;
pub mod limits;
pub mod limits_set;
pub mod list;

use holm_api::orgs::OrgView;
use holm_store::Org;

fn view(org: Org) -> OrgView {
    let Org { id, name, created_at } = org;
    OrgView { id, name, created_at }
}
