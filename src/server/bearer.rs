//! The bearer token of a request: in its `Authorization`, or, as browsers can name none, among the subprotocols of a websocket
//! (apiserver `authentication/request/bearertoken` and `.../websocket`).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};

const SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of a request with these headers.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    of_authorization(headers).or_else(|| of_websocket(headers))
}

fn of_authorization(headers: &HeaderMap) -> Option<String> {
    let written = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let mut words = written.splitn(3, ' ');
    words.next().filter(|scheme| scheme.eq_ignore_ascii_case("bearer"))?;
    words.next().filter(|token| !token.is_empty()).map(str::to_owned)
}

/// One of the subprotocols, beside another one that can be chosen.
fn of_websocket(headers: &HeaderMap) -> Option<String> {
    let upgrade = headers.get(header::UPGRADE)?.to_str().ok()?;
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return None;
    }
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let offered = offered.flat_map(|v| v.split(',')).map(str::trim);
    let (tokens, others): (Vec<_>, Vec<_>) = offered.partition(|p| p.starts_with(SUBPROTOCOL));
    let ([token], false) = (tokens.as_slice(), others.is_empty()) else { return None };
    let token = URL_SAFE_NO_PAD.decode(token.strip_prefix(SUBPROTOCOL)?).ok()?;
    String::from_utf8(token).ok().filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        bearer(&headers)
    }

    #[test]
    fn tokens_of_the_authorization() {
        for written in ["Bearer abc", "bearer abc", "BEARER abc", " Bearer abc "] {
            assert_eq!(of(&[("authorization", written)]).as_deref(), Some("abc"), "{written}");
        }
        for written in ["Basic abc", "Bearer", "Bearer ", "Bearerabc", "abc"] {
            assert_eq!(of(&[("authorization", written)]), None, "{written}");
        }
    }

    #[test]
    fn tokens_of_a_websocket() {
        let (token, other) = ("base64url.bearer.authorization.k8s.io.YWJj", "v4.channel.k8s.io");
        let both = format!("{token}, {other}");
        let protocol = "sec-websocket-protocol";
        assert_eq!(of(&[("upgrade", "websocket"), (protocol, &both)]).as_deref(), Some("abc"));
        assert_eq!(of(&[("upgrade", "WebSocket"), (protocol, token), (protocol, other)]).as_deref(), Some("abc"));
        assert_eq!(of(&[(protocol, &both)]), None, "no websocket");
        assert_eq!(of(&[("upgrade", "websocket"), (protocol, token)]), None, "nothing is left to choose");
        assert_eq!(of(&[("upgrade", "websocket"), (protocol, &format!("{both}, {token}"))]), None, "two tokens");
        assert_eq!(of(&[("upgrade", "websocket"), (protocol, &format!("{token}==, {other}"))]), None, "padding");
        let both = [("authorization", "Bearer first"), ("upgrade", "websocket"), (protocol, both.as_str())];
        assert_eq!(of(&both).as_deref(), Some("first"));
    }
}
