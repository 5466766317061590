//! The Indexers that this node talks to: its accounts there, their keys, and what they certify.
//!
//! A login is a file of mode 0600 below `logins/`; tokens never appear in the catalog, in the log or in an answer.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ::bucket::{SignedCertificate, Signer};
use anyhow::Context as _;
use indexer::client::{ClientError, IndexerClient};
use serde::{Deserialize, Serialize};
use types::{Name, PublicKey};
use url::{Host, Url};

use crate::api::{ApiError, ErrorCode, Login};
use crate::task::now_ms;

/// A certificate is renewed when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(120);

#[derive(Clone, Serialize, Deserialize)]
struct Account {
    url: Url,
    account: Name,
    /// The key that the Indexer certifies with.
    key: String,
    token: String,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("url", &self.url.as_str())
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// The Indexers of a node.
#[derive(Debug)]
pub(crate) struct Indexers {
    directory: PathBuf,
    signer: Signer,
    accounts: RwLock<BTreeMap<String, Account>>,
    clients: Mutex<BTreeMap<String, Arc<IndexerClient>>>,
    certificates: Mutex<BTreeMap<String, (u64, SignedCertificate)>>,
}

impl Indexers {
    pub(crate) fn open(directory: &Path, signer: Signer) -> anyhow::Result<Self> {
        medium::Medium::make_directory(&medium::Host, directory).context("could not make the directory of logins")?;
        let mut accounts = BTreeMap::new();
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
                let account: Account = serde_json::from_slice(&text)
                    .with_context(|| format!("the login {} is damaged: remove it and log in again", path.display()))?;
                accounts.insert(authority(&account.url), account);
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            signer,
            accounts: RwLock::new(accounts),
            clients: Mutex::default(),
            certificates: Mutex::default(),
        })
    }

    /// This node's key among peers.
    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    fn account(&self, indexer: &str) -> Option<Account> {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).get(indexer).cloned()
    }

    /// The hosts of all Indexers that this node has an account at.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.accounts.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The logins, without their tokens.
    pub(crate) fn logins(&self) -> Vec<Login> {
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        let show = |(indexer, account): (&String, &Account)| Login {
            indexer: indexer.clone(),
            url: account.url.to_string(),
            account: account.account.to_string(),
        };
        accounts.iter().map(show).collect()
    }

    /// The account that this node has at an Indexer.
    pub(crate) fn account_name(&self, indexer: &str) -> Option<Name> {
        self.account(indexer).map(|account| account.account)
    }

    /// The key that an Indexer certifies with, where this node has an account there.
    pub(crate) fn key_of(&self, indexer: &str) -> Option<PublicKey> {
        self.account(indexer).and_then(|account| account.key.parse().ok())
    }

    /// A client of an Indexer, by the host and port of a reference; with this node's account where it has one.
    pub(crate) fn client(&self, indexer: &str) -> Result<Arc<IndexerClient>, ApiError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(indexer) {
            return Ok(Arc::clone(client));
        }
        let (url, token) = match self.account(indexer) {
            Some(account) => (account.url, Some(account.token)),
            None => (default_url(indexer)?, None),
        };
        let client = Arc::new(IndexerClient::new(url, token).map_err(|error| client_error(&error))?);
        clients.insert(indexer.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    /// Logs in: the token is tried, then kept.
    pub(crate) async fn login(&self, indexer: &str, token: &str) -> Result<Login, ApiError> {
        let url = if indexer.contains("://") {
            Url::parse(indexer).map_err(|error| ApiError::new(ErrorCode::Invalid, format!("{indexer}: {error}")))?
        } else {
            default_url(indexer)?
        };
        let client = IndexerClient::new(url.clone(), Some(token.to_owned())).map_err(|error| client_error(&error))?;
        let whoami = client.whoami().await.map_err(|error| client_error(&error))?;
        let info = client.info().await.map_err(|error| client_error(&error))?;
        let account = Account { url, account: whoami.account, key: info.key.to_string(), token: token.to_owned() };
        let host = authority(&account.url);
        if let Some(before) = self.account(&host).filter(|before| before.key != account.key) {
            return Err(ApiError::new(
                ErrorCode::Forbidden,
                format!("{host} has another key than before ({})", before.key),
            )
            .hint("if the Indexer was set up anew, remove its file below logins/ in the node's directory"));
        }
        self.keep(&host, &account).map_err(|error| ApiError::new(ErrorCode::Internal, format!("{error:#}")))?;
        let login = Login { indexer: host.clone(), url: account.url.to_string(), account: account.account.to_string() };
        self.accounts.write().unwrap_or_else(PoisonError::into_inner).insert(host.clone(), account);
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&host);
        Ok(login)
    }

    fn keep(&self, host: &str, account: &Account) -> anyhow::Result<()> {
        let path = self.directory.join(format!("{}.json", host.replace([':', '[', ']'], "_")));
        let part = path.with_extension("part");
        let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec_pretty(account)?)?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        std::fs::File::open(&self.directory)?.sync_all()?;
        Ok(())
    }

    /// Certificates of all accounts, renewed where they run out; an Indexer that cannot be reached is left out.
    pub(crate) async fn certificates(&self) -> Vec<SignedCertificate> {
        let mut all = Vec::new();
        for host in self.hosts() {
            let kept = self.certificates.lock().unwrap_or_else(PoisonError::into_inner).get(&host).cloned();
            let enough = now_ms() + u64::try_from(RENEW_BEFORE.as_millis()).unwrap_or(u64::MAX);
            if let Some((_, certificate)) = kept.as_ref().filter(|(expires_ms, _)| *expires_ms > enough) {
                all.push(certificate.clone());
                continue;
            }
            match self.new_certificate(&host).await {
                Ok(certificate) => all.push(certificate),
                Err(error) => {
                    tracing::debug!(%error, indexer = host, "no new certificate");
                    all.extend(kept.map(|(_, certificate)| certificate));
                }
            }
        }
        all
    }

    async fn new_certificate(&self, host: &str) -> Result<SignedCertificate, ApiError> {
        let signed = self.client(host)?.certificate(&self.signer).await.map_err(|error| client_error(&error))?;
        let certificate = signed.verify(now_ms()).map_err(|error| ApiError::from_error(ErrorCode::Damaged, &error))?;
        let mut kept = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(host.to_owned(), (certificate.expires_ms, signed.clone()));
        Ok(signed)
    }
}

/// The host and port that references name an Indexer by.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    url.port().map_or(host.clone(), |port| format!("{host}:{port}"))
}

/// HTTPS, but plain HTTP on this machine.
fn default_url(indexer: &str) -> Result<Url, ApiError> {
    let invalid = |error: url::ParseError| ApiError::new(ErrorCode::Invalid, format!("{indexer:?}: {error}"));
    let secure = Url::parse(&format!("https://{indexer}")).map_err(invalid)?;
    let local = match secure.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if local { Url::parse(&format!("http://{indexer}")).map_err(invalid) } else { Ok(secure) }
}

/// Turns a client's error into the API's.
pub(crate) fn client_error(error: &ClientError) -> ApiError {
    let code = match error {
        ClientError::NotFound(_) => ErrorCode::NotFound,
        ClientError::Unauthorized(_) => ErrorCode::Forbidden,
        ClientError::Garbage { .. } => ErrorCode::Damaged,
        ClientError::Url { .. } | ClientError::Token => ErrorCode::Invalid,
        ClientError::Unreachable { .. } | ClientError::Closed { .. } | ClientError::TimedOut { .. } => {
            ErrorCode::Unreachable
        }
        _ => ErrorCode::Conflict,
    };
    let api = ApiError::from_error(code, error);
    match error.hint() {
        Some(hint) => api.hint(hint),
        None => api,
    }
}
