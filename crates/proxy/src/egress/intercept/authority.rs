//! The certificate authority of one sandbox, which nobody but that sandbox trusts.
//!
//! What always holds: its key, and the other one of the certificates that it signs, are made here, stay in memory and end with
//! it; a certificate is for one name and one day; sessions of TLS are taken up again, if at all, for the name that they were made
//! for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use holm_domain::egress::name::HostName;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::{CertifiedKey, SigningKey},
};

/// What is spoken within TLS, the better first (RFC 7301).
const SPOKEN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// How long a certificate of a name is valid, and after how long another takes its place.
const VALID_FOR: Duration = Duration::from_secs(24 * 3600);
const ANEW_AFTER: Duration = Duration::from_secs(12 * 3600);
/// How far the clock inside may be off.
const CLOCK_MARGIN: Duration = Duration::from_secs(3600);
/// The most names whose certificates are kept: a wildcard has names without end.
const KEPT_MAX: usize = 512;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It cannot be written, or signed.
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// It is of no use to TLS.
    #[error("a certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// There is no randomness.
    #[error("the system gives no random bytes")]
    Random,
}

/// Signs certificates for the names that a sandbox connects to.
pub struct Authority {
    provider: Arc<CryptoProvider>,
    issuer: CertifiedIssuer<'static, KeyPair>,
    leaf_key: KeyPair,
    signs: Arc<dyn SigningKey>,
    kept: Mutex<HashMap<HostName, Kept>>,
}

struct Kept {
    config: Arc<ServerConfig>,
    anew_at: Instant,
}

impl Authority {
    /// A new one, whose own certificate is valid for `valid_for`.
    pub fn new(valid_for: Duration) -> Result<Self, AuthorityError> {
        let provider = Arc::new(ring::default_provider());
        let mut params = params("", &[], valid_for, &provider)?;
        // Who has kept that of another sandbox is not to take one for the other.
        let number = params.serial_number.iter().flat_map(SerialNumber::to_bytes).take(4);
        let number = number.fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        params.distinguished_name.push(DnType::CommonName, format!("Holm: the authority of sandbox {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signs = ring::sign::any_ecdsa_type(&der)?;
        Ok(Self { provider, issuer, leaf_key, signs, kept: Mutex::default() })
    }

    /// Its certificate, as a file of PEM: what the sandbox is to trust.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// How TLS is spoken with a client that connected by `name`.
    pub fn speaks_for(&self, name: &HostName) -> Result<Arc<ServerConfig>, AuthorityError> {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(name)
            && now < known.anew_at
        {
            return Ok(known.config.clone());
        }
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        let config = self.config_for(name)?;
        kept.insert(name.clone(), Kept { config: config.clone(), anew_at: now + ANEW_AFTER });
        Ok(config)
    }

    fn config_for(&self, name: &HostName) -> Result<Arc<ServerConfig>, AuthorityError> {
        let key = Arc::new(CertifiedKey::new(vec![self.certificate_for(name)?], self.signs.clone()));
        let builder = ServerConfig::builder_with_provider(self.provider.clone());
        let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::new(OneName { name: name.clone(), key }));
        config.alpn_protocols = SPOKEN.map(<[u8]>::to_vec).to_vec();
        // A client that ends before it has read them would reset what it has sent.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn certificate_for(&self, name: &HostName) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = params("Holm", &[name.to_string()], VALID_FOR, &self.provider)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&self.leaf_key, &self.issuer)?.into())
    }
}

/// What all certificates have: names, a time, and a number that no other has.
fn params(
    common_name: &str,
    names: &[String],
    valid_for: Duration,
    provider: &CryptoProvider,
) -> Result<CertificateParams, AuthorityError> {
    let mut serial = [0; 16];
    provider.secure_random.fill(&mut serial).map_err(|_| AuthorityError::Random)?;
    // A number above nothing, however it is read (RFC 5280, section 4.1.2.2).
    serial[0] = serial[0] & 0x3f | 0x40;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = now();
    (params.not_before, params.not_after) = ((now - CLOCK_MARGIN).into(), (now + valid_for + CLOCK_MARGIN).into());
    Ok(params)
}

/// Certificates have dates.
#[allow(clippy::disallowed_methods)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Has a certificate for who asks for its name, and for nobody else.
#[derive(Debug)]
struct OneName {
    name: HostName,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for OneName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        asks_for(&hello, &self.name).then(|| self.key.clone())
    }
}

/// Whether a client of TLS asks for `name` (RFC 6066, section 3).
pub fn asks_for(hello: &ClientHello<'_>, name: &HostName) -> bool {
    hello.server_name().is_some_and(|asked| HostName::from_wire(asked.as_bytes()).is_ok_and(|asked| asked == *name))
}
