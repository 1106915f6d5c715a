//! Gives every call a deadline, and cuts the few that outstay it.

use super::{Arrival, Repeated, refusal, single};
use crate::error::{Error, Result};
use crate::rpc::access::Method;
use crate::rpc::stream::{OwnDeadline, Renewal};
use crate::store::caller::Caller;
use futures_util::future::{Either, FutureExt as _, Map, Ready, ready};
use http::{HeaderMap, HeaderName, Request, Response};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, Timeout, timeout_at};
use tonic::body::Body;
use tower::{Layer, Service};

static HEADER: HeaderName = HeaderName::from_static("grpc-timeout");

/// The store ends a call at its deadline itself, and can then say truthfully what became of a write that it has
/// sent; only a call that hangs elsewhere is cut from outside.
const GRACE: Duration = Duration::from_secs(2);

/// tonic's server ends a call at the client's own deadline, outside all layers and without details; we are first.
const MARGIN_MAX: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug)]
pub struct DeadlineLimits {
    /// For calls that name none.
    pub default: Duration,
    /// A call that asks for more gets this.
    pub max: Duration,
    /// The same for what answers with a stream, and also for one that names no deadline.
    pub stream_max: Duration,
}

/// When a call has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What the store holds itself to.
    pub deadline: Instant,
    /// When the call is cut. A stream is cut only until it begins: what it then does, it ends by itself.
    pub cut: Instant,
    /// When the client itself stops waiting, if it has said so.
    pub own: Option<Instant>,
}

impl DeadlineLimits {
    /// The limit of a call that arrived then with these headers.
    pub fn limit(&self, headers: &HeaderMap, arrived: Instant) -> Result<Limit> {
        let Some(asked) = asked(headers)? else {
            let deadline = arrived + self.default.min(self.max);
            return Ok(Limit { deadline, cut: deadline + GRACE, own: None });
        };
        let ours = asked - MARGIN_MAX.min(asked / 10);
        let deadline = arrived + ours.min(self.max);
        // A client's timeout can be longer than an instant can count.
        let own = arrived.checked_add(ours);
        let cut = own.map_or(deadline + GRACE, |own| own.min(deadline + GRACE));
        Ok(Limit { deadline, cut, own })
    }

    /// The limit of a call of that method: what takes long by nature is a stream.
    fn limit_of(&self, arrival: &Arrival, headers: &HeaderMap) -> Result<Limit> {
        let limit = self.limit(headers, arrival.at)?;
        if arrival.method.is_some_and(Method::is_long) {
            // It answers when it has everything, so it is cut no earlier.
            return self.long().limit(headers, arrival.at);
        }
        if !arrival.method.is_some_and(|method| method.is_stream) {
            return Ok(limit);
        }
        Ok(Limit { deadline: self.long().limit(headers, arrival.at)?.deadline, ..limit })
    }

    /// Those of streams.
    fn long(&self) -> Self {
        Self { default: self.stream_max, max: self.stream_max, ..*self }
    }
}

fn asked(headers: &HeaderMap) -> Result<Option<Duration>> {
    match single(headers, &HEADER) {
        Ok(None) => Ok(None),
        Ok(Some(text)) => parse(text).map(Some).ok_or(()),
        Err(Repeated) => Err(()),
    }
    .map_err(|()| {
        Error::invalid(HEADER.as_str(), "must be 1 to 8 digits and one of the units H M S m u n")
    })
}

fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    limits: DeadlineLimits,
}

impl DeadlineLayer {
    pub fn new(limits: DeadlineLimits) -> Self {
        DeadlineLayer { limits }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, limits: self.limits }
    }
}

#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    limits: DeadlineLimits,
}

type Answer<E> = Result<Response<Body>, E>;

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<
        Ready<Answer<S::Error>>,
        Map<Timeout<S::Future>, fn(Result<Answer<S::Error>, Elapsed>) -> Answer<S::Error>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let arrival = Arrival::of(request.extensions(), request.uri().path());
        let limit = match self.limits.limit_of(&arrival, request.headers()) {
            Ok(limit) if limit.deadline > Instant::now() => limit,
            Ok(_) => {
                let late = Error::DeadlineExceeded(" before the call began");
                return Either::Left(ready(Ok(refusal(late))));
            }
            Err(error) => return Either::Left(ready(Ok(refusal(error)))),
        };
        if let Some(caller) = request.extensions_mut().get_mut::<Caller>() {
            caller.deadline = limit.deadline;
        }
        if request.extensions().get::<Renewal>().is_some() {
            request.extensions_mut().insert(OwnDeadline(limit.own));
        }
        Either::Right(timeout_at(limit.cut, self.inner.call(request)).map(cut))
    }
}

fn cut<E>(answer: Result<Answer<E>, Elapsed>) -> Answer<E> {
    answer.unwrap_or_else(|_| {
        let late = " before the answer was ready; a write that had been sent may have been made";
        Ok(refusal(Error::DeadlineExceeded(late)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DeadlineLimits = DeadlineLimits {
        default: Duration::from_secs(10),
        max: Duration::from_secs(60),
        stream_max: Duration::from_secs(3600),
    };

    #[test]
    fn the_deadline_is_clamped() {
        let now = Instant::now();
        let after = |secs| now + Duration::from_secs(secs);
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(&HEADER, text.parse().unwrap());
            LIMITS.limit(&headers, now).unwrap()
        };
        let none = LIMITS.limit(&HeaderMap::new(), now).unwrap();
        assert_eq!(none, Limit { deadline: after(10), cut: after(12), own: None });
        let margin = Duration::from_millis(2);
        let limit = |deadline, cut, own| Limit { deadline, cut, own: Some(own) };
        let own = after(5) - margin;
        assert_eq!(of("5S"), limit(own, own, own));
        let own = after(61) - margin;
        assert_eq!(of("61S"), limit(after(60), own, own));
        let own = after(99_999_999 * 3600) - margin;
        assert_eq!(of("99999999H"), limit(after(60), after(62), own));
        assert_eq!(of("0n"), limit(now, now, now));
        assert_eq!(of("10m").deadline, now + Duration::from_millis(9));
    }

    #[test]
    fn a_stream_may_take_longer_and_begins_as_soon_as_any_call() {
        let at = Instant::now();
        let of = |path: &str, timeout: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(timeout) = timeout {
                headers.insert(&HEADER, timeout.parse().unwrap());
            }
            let arrival = Arrival {
                at,
                method: crate::rpc::access::find(path),
                trace_id: Default::default(),
            };
            let limit = LIMITS.limit_of(&arrival, &headers).unwrap();
            (limit.deadline - at, limit.cut - at)
        };
        let secs = Duration::from_secs;
        let (get, export) =
            ("/casebook.v1.AuditService/GetAuditEntry", "/casebook.v1.AuditService/ExportAudit");
        assert_eq!(of(get, None), (secs(10), secs(12)));
        assert_eq!(of(export, None), (secs(3600), secs(12)));
        assert_eq!(of(export, Some("99999999H")), (secs(3600), secs(62)));
        let asked = secs(600) - MARGIN_MAX;
        assert_eq!(of(get, Some("600S")).0, secs(60));
        assert_eq!(of(export, Some("600S")), (asked, secs(62)));
    }

    #[test]
    fn timeouts_are_parsed() {
        for (text, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("00000004S", Duration::from_secs(4)),
            ("5m", Duration::from_millis(5)),
            ("6u", Duration::from_micros(6)),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(expected), "{text}");
        }
        for bad in ["", "S", "1", "-1S", "1.5S", "123456789S", "1s", "1 S", "1S "] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
