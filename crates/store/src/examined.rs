//! Whether runs can be read, looked at from outside a server. What a server does about one that cannot be, it does by
//! itself; this is for people.

use crate::{
    Error, Result, runs,
    sql::{Db, args, queries},
};

/// The most runs that are looked at.
pub const RUNS_EXAMINED_MAX: usize = 10_000;
/// How many are read together.
const PAGE: usize = 500;

/// What was found of the runs that have not ended.
#[derive(Debug, Default)]
pub struct ExaminedRuns {
    /// How many were looked at.
    pub count: usize,
    /// Why some of them cannot be read; each names its run.
    pub unreadable: Vec<Error>,
}

queries! {
    of "run" in "project";
    RUNS_EXAMINED = "select id, org, version, state, body from runs
        where state <> 'ended' and (org, id) > ($1, $2) order by org, id limit $3 + 0";
}

/// Reads the runs that have not ended, at most [`RUNS_EXAMINED_MAX`], in the database that `url` names, which must be there.
/// There are none where no server has begun. Nothing is changed.
pub async fn runs_examine(url: &str) -> Result<ExaminedRuns> {
    let mut examined = ExaminedRuns::default();
    let Some(db) = Db::look(url).await? else { return Ok(examined) };
    let (mut org, mut id) = (String::new(), String::new());
    while examined.count < RUNS_EXAMINED_MAX {
        let page = db.rows(RUNS_EXAMINED, args![org.as_str(), id.as_str(), PAGE]).await?;
        examined.count += page.len();
        examined.unreadable.extend(page.iter().filter_map(|row| runs::read(row).err()));
        match page.last() {
            Some(last) if page.len() == PAGE => {
                let last = last.of("runs", "id")?;
                (org, id) = (last.text("org")?, last.text("id")?);
            }
            _ => break,
        }
    }
    Ok(examined)
}
