//! Limits of the protocol. Both ends hold themselves and the other to them.

/// The version that this crate speaks.
pub const VERSION: u16 = 1;

/// The longest body of a frame, in bytes: a message.
pub const MAX_BODY: usize = 128 * 1024;

/// The most bytes of a stream in one [`Data`](crate::ToHost::Data) message. Short enough that a
/// frame of another stream does not wait long behind it.
pub const MAX_DATA: usize = 32 * 1024;

/// The bytes of a stream that may be sent before the other end has granted any. No end may ever
/// have more granted and not used.
pub const WINDOW: u32 = 256 * 1024;

/// The most requests of a session that run at once; the next is answered with
/// [`Busy`](crate::FailureKind::Busy).
pub const MAX_REQUESTS: usize = 256;

/// The most elements of a list in a message: arguments, variables, entries of a folder, hooks.
pub const MAX_LIST: usize = 4096;

/// The longest text of a [`Failure`](crate::Failure), in bytes.
pub const MAX_TEXT: usize = 1024;

/// The most bytes of entropy in one request.
pub const MAX_ENTROPY: usize = 512;

/// The most bytes of a hook's output that its result quotes.
pub const MAX_HOOK_OUTPUT: usize = 1024;
