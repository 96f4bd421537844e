//! The bucket in which a server keeps large objects: whether it answers, and what to do if it does not.

use std::path::PathBuf;

use holm_store::BlobPlace;

use super::{Probe, good, missing};
use crate::{config::Environment, home::Home, output::told as shown, serve::blobs::BlobsTold, session::Session};

/// What there is to look at of large objects beside a folder.
pub enum Bucket {
    /// They lie in a folder.
    None,
    /// What is told of them is no place.
    Wrong(String),
    /// A bucket.
    Told(BlobsTold, holm_store::S3Place),
}

/// What is told of large objects, and the folder in which they lie, if it is one.
pub fn told(session: &Session, home: &Home) -> (Bucket, Option<PathBuf>) {
    let env = Environment::of_process();
    let found = BlobsTold::of_settings(&session.config, &env).and_then(|told| {
        let place = told.place(home, &env)?;
        Ok((told, place))
    });
    match found {
        Ok((_, BlobPlace::Folder(folder))) => (Bucket::None, Some(folder)),
        Ok((told, BlobPlace::S3(place))) => (Bucket::Told(told, place), None),
        Err(error) => (Bucket::Wrong(shown(&error)), None),
    }
}

impl Bucket {
    /// Looks whether it answers. What that takes is bounded by the store.
    pub async fn probe(self) -> Option<Probe> {
        let name = "blobs";
        let (told, place) = match self {
            Self::None => return None,
            Self::Wrong(problem) => return Some(missing(name, problem, "correct it; see `holm server --help`")),
            Self::Told(told, place) => (told, place),
        };
        let blobs = match told.bucket(&place, &Environment::of_process()) {
            Ok(blobs) => blobs,
            Err(error) => {
                return Some(missing(name, format!("{place}: {}", shown(&error)), "give credentials that work"));
            }
        };
        Some(match blobs.reach().await {
            Ok(answer_time) => good(name, format!("{place} answers within {} ms", answer_time.as_millis() + 1)),
            Err(unreached) => missing(name, format!("{place}: {}", unreached.problem), unreached.way_out),
        })
    }
}
