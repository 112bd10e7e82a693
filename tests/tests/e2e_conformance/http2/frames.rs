//! Frames of HTTP/2 as bytes (RFC 9113, 4.1 and 6), right or wrong, and head blocks without compression (RFC 7541, 6.2).
//!
//! In: what a frame shall hold. Out: bytes. Never: a check; what is sent is the case's business.

/// Types of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags; ACK is END_STREAM's bit.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITY_FLAG: u8 = 32;
/// What a whole request without a body has.
pub const WHOLE: u8 = END_STREAM | END_HEADERS;

/// Codes of errors (RFC 9113, 7).
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// Settings (RFC 9113, 6.5.2).
pub const HEADER_TABLE_SIZE: u16 = 1;
pub const ENABLE_PUSH: u16 = 2;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Names of codes, by number.
const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// A code's name.
pub fn code_name(code: u32) -> &'static str {
    CODES.get(code as usize).copied().unwrap_or("a code of its own")
}

/// A frame with the length that it has.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    lying(payload.len(), kind, flags, stream, payload)
}

/// A frame that says another length.
pub fn lying(length: usize, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// SETTINGS.
pub fn settings(of: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        of.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// A whole request's head that ends the stream.
pub fn get(stream: u32) -> Vec<u8> {
    headers(stream, WHOLE, &request("GET"))
}

/// HEADERS of these lines.
pub fn headers(stream: u32, flags: u8, lines: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags, stream, &block(lines))
}

/// DATA.
pub fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

/// RST_STREAM.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// WINDOW_UPDATE.
pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// The lines that every request needs.
pub fn request(method: &str) -> Vec<(&str, &str)> {
    vec![(":method", method), (":scheme", "http"), (":path", "/h2"), (":authority", "server")]
}

/// Those and more.
pub fn request_and<'a>(method: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [request(method), more.to_vec()].concat()
}

/// Lines as a head block: each a literal without indexing, nothing compressed.
pub fn block(lines: &[(&str, &str)]) -> Vec<u8> {
    lines.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect()
}

/// One line.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0], &text(name)[..], &text(value)].concat()
}

/// A string literal (RFC 7541, 5.2).
pub fn text(bytes: &[u8]) -> Vec<u8> {
    [integer(bytes.len(), 7, 0), bytes.to_vec()].concat()
}

/// An integer behind a prefix (RFC 7541, 5.1).
pub fn integer(value: usize, bits: u32, first: u8) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![first | u8::try_from(most).unwrap()];
    let mut left = value - most;
    while left >= 128 {
        bytes.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    bytes.push(u8::try_from(left).unwrap());
    bytes
}
