//! A proxy between server and PostgreSQL that cuts a connection at a chosen message.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// Where the next cut of a write connection happens. It happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Never,
    /// COMMIT reaches PostgreSQL, which carries it out; the reply reaches nobody.
    AfterCommit,
    /// COMMIT reaches nobody.
    BeforeCommit,
    /// So many messages get through, and the next one does not.
    Before(usize),
}

pub struct Proxy {
    pub port: u16,
    plan: Arc<Mutex<Cut>>,
    /// False: nobody gets through and everybody is thrown out.
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Before the server of that configuration.
    pub async fn start(server: &Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Mutex::new(Cut::Never));
        let open = watch::Sender::new(true);
        let (server, cuts, gate) = (server.clone(), Arc::clone(&plan), open.subscribe());
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                if !*gate.borrow() {
                    continue;
                }
                let (server, cuts, mut gate) = (server.clone(), Arc::clone(&cuts), gate.clone());
                tokio::spawn(async move {
                    client.set_nodelay(true).unwrap();
                    tokio::select! {
                        () = forward(client, &server, &cuts) => {}
                        _ = gate.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, plan, open, accepting }
    }

    /// The same database through the proxy.
    pub fn url(&self, config: &Config) -> String {
        let mut here = Config::new();
        here.host("127.0.0.1").port(self.port);
        here.user(config.get_user().unwrap_or("postgres"));
        here.dbname(config.get_dbname().unwrap_or("postgres"));
        if let Some(password) = config.get_password() {
            here.password(password);
        }
        crate::world::url_of(&here)
    }

    pub fn cut(&self, cut: Cut) {
        *self.plan.lock().unwrap() = cut;
    }

    /// Whether the cut that was ordered has happened.
    pub fn has_cut(&self) -> bool {
        *self.plan.lock().unwrap() == Cut::Never
    }

    /// As if PostgreSQL had gone, or come back.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.open.send_replace(false);
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(config: &Config) -> Box<dyn Stream> {
    let port = config.get_ports().first().copied().unwrap_or(5432);
    match &config.get_hosts()[0] {
        Host::Unix(folder) => {
            let path: PathBuf = folder.join(format!(".s.PGSQL.{port}"));
            Box::new(UnixStream::connect(path).await.expect("PostgreSQL is up"))
        }
        Host::Tcp(host) => {
            Box::new(TcpStream::connect((host.as_str(), port)).await.expect("PostgreSQL is up"))
        }
    }
}

/// Carries one connection until either end closes it or it is cut.
async fn forward(client: TcpStream, server: &Config, plan: &Mutex<Cut>) {
    let server = connect(server).await;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);

    let Some(startup) = message(&mut from_client, false).await else { return };
    let is_write = startup.windows(15).any(|part| part == b"casebook-write\0");
    to_server.write_all(&startup).await.unwrap();

    // From this point on, what PostgreSQL says is swallowed.
    let (swallow, swallowing) = watch::channel(false);
    let requests = async {
        let mut passed = 0;
        while let Some(message) = message(&mut from_client, true).await {
            let is_commit = message[0] == b'Q' && &message[5..] == b"COMMIT\0";
            let cut = if is_write { take(plan, is_commit, passed) } else { Cut::Never };
            if cut == Cut::AfterCommit {
                swallow.send_replace(true);
            } else if cut != Cut::Never {
                return;
            }
            if to_server.write_all(&message).await.is_err() {
                return;
            }
            passed += 1;
        }
    };
    let answers = async {
        while let Some(message) = message(&mut from_server, true).await {
            if *swallowing.borrow() {
                // The reply to COMMIT: now it has happened.
                if message[0] == b'C' && &message[5..] == b"COMMIT\0" {
                    return;
                }
            } else if to_client.write_all(&message).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

/// The cut for this message, if it is the one.
fn take(plan: &Mutex<Cut>, is_commit: bool, passed: usize) -> Cut {
    let mut plan = plan.lock().unwrap();
    let now = match *plan {
        Cut::Never => false,
        Cut::AfterCommit | Cut::BeforeCommit => is_commit,
        Cut::Before(count) => passed >= count,
    };
    if now { std::mem::replace(&mut *plan, Cut::Never) } else { Cut::Never }
}

/// One message of the protocol, type and length included; `None` at the end of the connection.
async fn message(from: &mut (impl AsyncRead + Unpin), typed: bool) -> Option<Vec<u8>> {
    let head = usize::from(typed);
    let mut message = vec![0; head + 4];
    from.read_exact(&mut message).await.ok()?;
    let length = u32::from_be_bytes(message[head..].try_into().unwrap()) as usize;
    message.resize(head + length, 0);
    from.read_exact(&mut message[head + 4..]).await.ok()?;
    Some(message)
}
