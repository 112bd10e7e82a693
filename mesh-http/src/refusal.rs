//! Why a message is refused. In: a fault. Out: the status for a client, and Envoy's name for it where there is one. No I/O.

/// A fault of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The start line is none, or its method or reason has characters that it may not have.
    StartLine,
    /// The request's target has characters that it may not have, or is in a form that its method may not have (RFC 9112, 3.2).
    Target,
    /// No version of HTTP/1.
    Version,
    /// A version that is well formed, and neither 1.0 nor 1.1.
    OtherVersion,
    /// A line ends in LF without CR.
    BareLf,
    /// CR without LF, or something else that ends no line.
    LineEnd,
    /// A header's name is no token; also a space before the colon, and a folded line.
    HeaderName,
    /// A header's value has control characters.
    HeaderValue,
    /// The head has too many bytes.
    HeadTooLarge,
    /// The head has too many lines.
    TooManyLines,
    /// An HTTP/1.1 request without `Host`.
    NoHost,
    /// More than one `Host`.
    ManyHosts,
    /// A host that is none (RFC 3986, 3.2).
    Host,
    /// A length that is no number, or too large a one.
    Length,
    /// More than one length.
    ManyLengths,
    /// A length, and `Transfer-Encoding`.
    LengthAndEncoding,
    /// `Transfer-Encoding` whose last coding is not `chunked`, or that has it twice, or in HTTP/1.0, or in CONNECT.
    Encoding,
    /// A coding that is not known here.
    UnknownEncoding,
    /// A status that is none.
    Status,
    /// A chunk's size, extension or end.
    Chunk,
    /// A trailer that is malformed, or that may not be one (RFC 9110, 6.5.1).
    Trailer,
    /// Trailers of too many bytes or lines.
    TrailersTooLarge,
}

impl Refusal {
    /// The status for the client whose request it is. A server's response that is refused is always a 502.
    pub fn status(self) -> u16 {
        match self {
            Self::HeadTooLarge | Self::TooManyLines | Self::TrailersTooLarge => 431,
            Self::UnknownEncoding => 501,
            Self::OtherVersion => 505,
            _ => 400,
        }
    }

    /// Name for the access log (`%RESPONSE_CODE_DETAILS%`).
    pub fn name(self) -> &'static str {
        match self {
            Self::StartLine => "http1.invalid_start_line",
            Self::Target => "http1.invalid_url",
            Self::Version => "http1.invalid_version",
            Self::OtherVersion => "http1.unsupported_version",
            Self::BareLf => "http1.bare_lf",
            Self::LineEnd => "http1.invalid_line_end",
            Self::HeaderName => "http1.invalid_header_name",
            Self::HeaderValue => "http1.invalid_characters",
            Self::HeadTooLarge => "http1.headers_too_large",
            Self::TooManyLines => "http1.too_many_headers",
            Self::NoHost => "missing_host_header",
            Self::ManyHosts => "http1.duplicate_host",
            Self::Host => "invalid_authority",
            Self::Length => "http1.invalid_content_length",
            Self::ManyLengths => "http1.multiple_content_length",
            Self::LengthAndEncoding => "http1.content_length_and_chunked_not_allowed",
            Self::Encoding | Self::UnknownEncoding => "http1.invalid_transfer_encoding",
            Self::Status => "http1.invalid_status",
            Self::Chunk => "http1.invalid_chunk",
            Self::Trailer => "http1.invalid_trailer",
            Self::TrailersTooLarge => "http1.trailers_too_large",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<httparse::Error> for Refusal {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::HeaderName => Self::HeaderName,
            httparse::Error::HeaderValue => Self::HeaderValue,
            httparse::Error::NewLine => Self::LineEnd,
            httparse::Error::Status => Self::Status,
            httparse::Error::Token => Self::StartLine,
            httparse::Error::TooManyHeaders => Self::TooManyLines,
            httparse::Error::Version => Self::Version,
        }
    }
}
