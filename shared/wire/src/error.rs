//! The codes that a client sees, over HTTP in `code` and over MQTT as a reason. Never renamed.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $http:literal;)*) => {
        /// What went wrong, as a closed set; the text is stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable text.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status that carries it.
            #[must_use]
            pub fn http_status(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }
        }
    };
}

codes! {
    /// A field is missing, of the wrong type or out of range.
    InvalidArgument = "invalid_argument", 400;
    /// No or wrong credentials.
    Unauthenticated = "unauthenticated", 401;
    /// The role does not allow it.
    PermissionDenied = "permission_denied", 403;
    /// There is no such object, or it is another tenant's.
    NotFound = "not_found", 404;
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed", 405;
    /// No media type of the answer is one that the client accepts.
    NotAcceptable = "not_acceptable", 406;
    /// Already there, or not in the state that the request needs.
    Conflict = "conflict", 409;
    /// A version or ETag no longer matches.
    PreconditionFailed = "precondition_failed", 412;
    /// Over a size limit.
    TooLarge = "too_large", 413;
    /// The media type is not understood.
    UnsupportedMediaType = "unsupported_media_type", 415;
    /// A claim token was used, revoked or is past its time.
    ClaimSpent = "claim_spent", 410;
    /// An idempotency key was used with another request.
    IdempotencyMismatch = "idempotency_mismatch", 422;
    /// A rate limit or quota is exceeded; try later.
    RateLimited = "rate_limited", 429;
    /// A fault of the server; the request id finds it in the log.
    Internal = "internal", 500;
    /// A part that the request needs is down or starting; try later.
    Unavailable = "unavailable", 503;
    /// Another process of this deployment has it, as the message says; asking this one again does not help.
    NotOnThisProcess = "not_on_this_process", 503;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
