//! Where a server keeps large objects: what it was told, and how that is opened.
//!
//! What always holds: credentials come from the environment or from a file, are shown nowhere, and no run may have that file
//! lent; a bucket is tried before anything is served.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use holm_store::{BlobPlace, Blobs, Error, S3Keys, S3Place};

use crate::{
    commands::Usage,
    config::{Config, Environment},
    home::{Home, create_dir},
};

/// The variables with the credentials for a bucket, as all tools for S3 read them.
const KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN: &str = "AWS_SESSION_TOKEN";
const SHARED_FILE: &str = "AWS_SHARED_CREDENTIALS_FILE";
const PROFILE: &str = "AWS_PROFILE";
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];

/// What a server was told of its large objects.
#[derive(Debug, Clone)]
pub struct BlobsTold {
    /// Who told it: a flag, a variable or a key.
    pub at: &'static str,
    /// The place, as it was written.
    pub place: Option<String>,
    /// The file with the credentials for a bucket.
    pub credentials: Option<PathBuf>,
}

impl BlobsTold {
    /// What the configuration file says.
    pub fn of_file(config: &Config) -> Self {
        let (table, folder) = (&config.file.server, config.path.parent().unwrap_or(Path::new("/")));
        Self {
            at: "server.blobs",
            place: table.blobs.clone(),
            credentials: table.blobs_credentials.as_ref().map(|path| folder.join(path)),
        }
    }

    /// The same; a variable of the environment counts more.
    pub fn of_settings(config: &Config, env: &Environment) -> anyhow::Result<Self> {
        let of_file = Self::of_file(config);
        Ok(match env.text("HOLM_BLOBS")? {
            Some(place) => Self { at: "HOLM_BLOBS", place: Some(place.value), ..of_file },
            None => of_file,
        })
    }

    /// Refuses what is no place. It is not quoted: somebody may have put a secret into it.
    pub fn check(&self) -> Result<(), Usage> {
        let Some(text) = &self.place else { return Ok(()) };
        let scheme = text.split_once(':').map(|(scheme, _)| scheme).filter(|it| matches!(*it, "file" | "s3"));
        let shown = scheme.map_or_else(|| "…".to_owned(), |scheme| format!("{scheme}:…"));
        match text.parse::<BlobPlace>() {
            Ok(_) => Ok(()),
            Err(Error::Invalid { problem, .. }) => Err(Usage::new(self.at, &shown, problem)),
            Err(error) => Err(Usage::new(self.at, &shown, error.to_string())),
        }
    }

    /// The place, with the region that the environment names; a folder under the home where nothing was told.
    pub fn place(&self, home: &Home, env: &Environment) -> anyhow::Result<BlobPlace> {
        let Some(text) = &self.place else { return Ok(BlobPlace::Folder(home.blobs())) };
        let place = match text.parse().with_context(|| self.at)? {
            BlobPlace::S3(place) => place,
            folder @ BlobPlace::Folder(_) => return Ok(folder),
        };
        for name in REGIONS {
            if let Some(region) = env.text(name)? {
                return Ok(BlobPlace::S3(place.in_region(Some(&region.value)).with_context(|| name)?));
            }
        }
        Ok(BlobPlace::S3(place))
    }

    /// The file with the credentials, and who named it; nothing where they stand in the environment.
    pub fn credentials_file(&self, env: &Environment) -> Option<(PathBuf, &'static str)> {
        if let Some(path) = &self.credentials {
            return Some((path.clone(), "server.blobs_credentials"));
        }
        let shared = env.get(SHARED_FILE).filter(|_| env.get(KEY_ID).is_none());
        shared.map(|path| (PathBuf::from(path), SHARED_FILE))
    }

    fn keys(&self, env: &Environment) -> anyhow::Result<S3Keys> {
        if let Some((path, at)) = self.credentials_file(env) {
            let profile = env.text(PROFILE)?.map_or_else(|| "default".to_owned(), |profile| profile.value);
            return S3Keys::of_file(&path, &profile).with_context(|| at);
        }
        let (id, secret, token) = (env.text(KEY_ID)?, env.text(SECRET)?, env.text(TOKEN)?);
        let (Some(id), Some(secret)) = (id, secret) else {
            bail!(
                "there are no credentials for the bucket: set {KEY_ID} and {SECRET}, or name a file of them with \
                 --blobs-credentials or `[server] blobs_credentials`"
            );
        };
        S3Keys::given(&id.value, &secret.value, token.as_ref().map(|token| token.value.as_str())).context(KEY_ID)
    }

    /// The bucket, of which nothing is asked yet.
    pub fn bucket(&self, place: &S3Place, env: &Environment) -> anyhow::Result<Blobs> {
        Ok(Blobs::s3(place, self.keys(env)?)?)
    }

    /// Opens the place, and tries it if it is far away.
    pub async fn open(&self, home: &Home, env: &Environment) -> anyhow::Result<Blobs> {
        match &self.place(home, env)? {
            BlobPlace::Folder(path) => {
                create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
                Blobs::local(path).context("cannot open the folder of large objects")
            }
            BlobPlace::S3(bucket) => {
                let blobs = self.bucket(bucket, env)?;
                if let Err(unreached) = blobs.prove().await {
                    bail!("cannot keep large objects in {bucket}: {}; {}", unreached.problem, unreached.way_out);
                }
                tracing::info!(%bucket, "large objects are kept there");
                Ok(blobs)
            }
        }
    }

    /// What no run may have lent.
    pub fn guarded(&self) -> Vec<PathBuf> {
        let folder = match self.place.as_deref().map(str::parse) {
            Some(Ok(BlobPlace::Folder(path))) => Some(path),
            _ => None,
        };
        let credentials = self.credentials_file(&Environment::of_process()).map(|(path, _)| path);
        folder.into_iter().chain(credentials).collect()
    }
}
