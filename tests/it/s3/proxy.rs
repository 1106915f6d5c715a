//! A proxy in front of S3 that answers wrongly, late, in part or not at all, when it is told to.
//!
//! Each connection carries one request, read whole before it is passed on, and the answer is read whole before it is given
//! back: bodies of tests are small. The request's headers go on as they came, because they are signed.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The proxy answers with this status and S3's words for it; the store never hears of it.
    Status(u16),
    /// The store does it, and then the proxy answers with this status.
    StatusAfter(u16),
    /// The store does it, and then the proxy answers 200 with an error in XML, as S3 may once it has begun to answer.
    ErrorIn200,
    /// The store hears of it so much later, unless the client has gone away by then.
    Held(Duration),
    /// The answer comes so much later.
    Slow(Duration),
    /// Half of the answer's body comes, then the connection ends.
    Torn,
    /// Half of the answer's body comes, and the rest so much later.
    Stalled(Duration),
    /// The answer's body comes in ten pieces, with such a pause before each.
    Dripping(Duration),
    /// The answer says that its body is one byte longer than it is.
    LengthTooLong,
    /// The answer says that its body is one byte shorter than it is; what is over is not sent.
    LengthTooShort,
    /// The body comes in HTTP's chunks, which end it, and is one byte longer than the answer says.
    TooLong,
    /// One bit of the answer's body is not what the store said.
    Flipped,
    /// The connection ends before the store hears of it.
    CutBefore,
    /// The store does it, and the connection ends without an answer.
    CutAfter,
}

/// Which of the requests that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// From 1.
    Nth(usize),
    First(usize),
    Every,
}

struct Rule {
    method: &'static str,
    /// A part of the path with its query.
    part: String,
    when: When,
    fault: Fault,
    seen: usize,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    seen: Vec<(String, String)>,
    /// Requests that are late now, the most at one time, and those whose client did not wait for that.
    late: usize,
    late_max: usize,
    left: usize,
}

impl Plan {
    /// Notes a request and says what happens to it: what the first rule says that applies.
    fn next(&mut self, method: &str, path: &str) -> Option<Fault> {
        self.seen.push((method.to_owned(), path.to_owned()));
        let mut fault = None;
        for rule in &mut self.rules {
            if !(rule.method.is_empty() || rule.method == method) || !path.contains(&rule.part) {
                continue;
            }
            rule.seen += 1;
            let applies = match rule.when {
                When::Nth(n) => rule.seen == n,
                When::First(n) => rule.seen <= n,
                When::Every => true,
            };
            if applies && fault.is_none() {
                fault = Some(rule.fault);
            }
        }
        fault
    }
}

pub struct Proxy {
    /// What clients use instead of the store's.
    pub endpoint: String,
    plan: Arc<Mutex<Plan>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of `http://host:port`.
    pub async fn start(endpoint: &str) -> Self {
        Self::translating(endpoint, |head| head.to_owned()).await
    }

    /// In front of a store that is asked in other words: given the head of a request, what it is told instead.
    pub async fn translating(endpoint: &str, translate: fn(&str) -> String) -> Self {
        let store = endpoint.strip_prefix("http://").expect("plain HTTP").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let plan = Arc::new(Mutex::new(Plan::default()));
        let kept = Arc::clone(&plan);
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let (plan, store) = (Arc::clone(&kept), store.clone());
                // A client that has gone away is no concern of the proxy.
                tokio::spawn(async move {
                    let _ = carry(client, &store, &plan, translate).await;
                });
            }
        });
        Self { endpoint, plan, accepting }
    }

    /// From now on: requests with this method (all, if empty) and with this part in path and query.
    pub fn on(&self, method: &'static str, part: &str, when: When, fault: Fault) {
        let rule = Rule { method, part: part.to_owned(), when, fault, seen: 0 };
        self.plan.lock().unwrap().rules.push(rule);
    }

    /// Passes everything on again, and forgets what it has seen.
    pub fn heal(&self) {
        *self.plan.lock().unwrap() = Plan::default();
    }

    /// How many requests with this method and this part came, faulty ones and repeated ones included.
    pub fn attempts(&self, method: &str, part: &str) -> usize {
        let plan = self.plan.lock().unwrap();
        let matches = |(m, path): &&(String, String)| {
            (method.is_empty() || m == method) && path.contains(part)
        };
        plan.seen.iter().filter(matches).count()
    }

    /// How many requests are late now, because they are held or slow.
    pub fn late(&self) -> usize {
        self.plan.lock().unwrap().late
    }

    /// The most that were late at one time.
    pub fn late_max(&self) -> usize {
        self.plan.lock().unwrap().late_max
    }

    /// How many requests were late for so long that their client went away.
    pub fn left(&self) -> usize {
        self.plan.lock().unwrap().left
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(
    mut client: TcpStream,
    store: &str,
    plan: &Mutex<Plan>,
    translate: fn(&str) -> String,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let (head, mut body) = read_head(&mut client).await?;
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let fault = plan.lock().unwrap().next(method, path);
    match header(&head, "content-length").and_then(|text| text.parse::<usize>().ok()) {
        Some(size) => {
            let got = body.len();
            body.resize(size, 0);
            client.read_exact(&mut body[got.min(size)..]).await?;
        }
        None => assert!(header(&head, "transfer-encoding").is_none(), "nobody here sends chunks"),
    }
    match fault {
        Some(Fault::CutBefore) => return Ok(()),
        Some(Fault::Held(late)) if !is_waited_for(&mut client, late, plan).await => return Ok(()),
        Some(Fault::Status(status)) => {
            return client.write_all(&refusal(status, &error_code(status))).await;
        }
        _ => {}
    }

    let mut upstream = TcpStream::connect(store).await?;
    upstream.set_nodelay(true)?;
    let head = translate(&head);
    upstream.write_all(with_header(&head, "Connection", "close").as_bytes()).await?;
    upstream.write_all(&body).await?;
    let (head, mut body) = read_head(&mut upstream).await?;
    upstream.read_to_end(&mut body).await?;
    let mut head = with_header(&head, "Connection", "close");

    match fault {
        Some(Fault::CutAfter) => return Ok(()),
        Some(Fault::StatusAfter(status)) => {
            return client.write_all(&refusal(status, &error_code(status))).await;
        }
        Some(Fault::ErrorIn200) => {
            return client.write_all(&refusal(200, "InternalError")).await;
        }
        Some(Fault::Slow(late)) if !is_waited_for(&mut client, late, plan).await => return Ok(()),
        Some(Fault::Torn) => body.truncate(body.len() / 2),
        Some(Fault::LengthTooLong) => {
            head = with_header(&head, "Content-Length", &(body.len() + 1).to_string());
        }
        Some(Fault::LengthTooShort) => {
            body.truncate(body.len().saturating_sub(1));
            head = with_header(&head, "Content-Length", &body.len().to_string());
        }
        Some(Fault::TooLong) => {
            head = with_header(&head, "Transfer-Encoding", "chunked");
            let size = format!("{:x}\r\n", body.len() + 1);
            body.splice(0..0, size.into_bytes());
            body.extend_from_slice(b"x\r\n0\r\n\r\n");
        }
        Some(Fault::Flipped) => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        _ => {}
    }
    client.write_all(head.as_bytes()).await?;
    let mut rest = &body[..];
    match fault {
        Some(Fault::Stalled(late)) => {
            let (first, second) = rest.split_at(rest.len() / 2);
            client.write_all(first).await?;
            rest = second;
            if !is_waited_for(&mut client, late, plan).await {
                return Ok(());
            }
        }
        Some(Fault::Dripping(pause)) => {
            for piece in rest.chunks(rest.len().div_ceil(10).max(1)) {
                tokio::time::sleep(pause).await;
                client.write_all(piece).await?;
            }
            rest = &[];
        }
        _ => {}
    }
    client.write_all(rest).await?;
    client.shutdown().await
}

/// Waits, and tells whether the client did, too.
async fn is_waited_for(client: &mut TcpStream, late: Duration, plan: &Mutex<Plan>) -> bool {
    {
        let mut plan = plan.lock().unwrap();
        plan.late += 1;
        plan.late_max = plan.late_max.max(plan.late);
    }
    let waits = tokio::select! {
        () = tokio::time::sleep(late) => true,
        // It has sent all that it has to send.
        _ = client.read_u8() => false,
    };
    let mut plan = plan.lock().unwrap();
    // The plan may be another by now.
    plan.late = plan.late.saturating_sub(1);
    plan.left += usize::from(!waits);
    waits
}

/// A head with its empty line, and what came of the body with it.
async fn read_head(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(at + 4);
            let head = String::from_utf8(bytes).map_err(std::io::Error::other)?;
            return Ok((head, body));
        }
        if from.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// A head in which a header has this value, and no other.
fn with_header(head: &str, name: &str, value: &str) -> String {
    let is_other = |line: &&str| {
        !line.is_empty()
            && !line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name))
    };
    let mut out: String =
        head.split("\r\n").filter(is_other).flat_map(|line| [line, "\r\n"]).collect();
    out.push_str(&format!("{name}: {value}\r\n\r\n"));
    out
}

/// S3's name of a status.
fn error_code(status: u16) -> String {
    let name = match status {
        403 => "AccessDenied",
        500 => "InternalError",
        503 => "SlowDown",
        _ => "Error",
    };
    name.to_owned()
}

fn refusal(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>As the test wants it.</Message>\
         <RequestId>0</RequestId></Error>"
    );
    let size = body.len();
    format!(
        "HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {size}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}
