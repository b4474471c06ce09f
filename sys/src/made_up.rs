//! Fake kernel, request by request, for the tests of the safe types.

use std::{cell::RefCell, collections::BTreeMap, ffi::c_void, fmt, rc::Rc};

use nix::errno::Errno;

use crate::request::{ALL, Request};

type Answer = Box<dyn FnMut(*mut c_void) -> Result<(), Errno>>;

/// Answers the requests that it was told how to answer, and others as the kernel answers what it
/// does not know: with `ENOTTY`. Copies of it are the same kernel.
#[derive(Clone, Default)]
pub(crate) struct Kernel {
    answers: Rc<RefCell<BTreeMap<u32, Answer>>>,
    answered: Rc<RefCell<Vec<&'static str>>>,
}

impl Kernel {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Has `request` answered by `answer`, which may change the argument.
    pub(crate) fn on<T: 'static>(
        self,
        request: Request<T>,
        mut answer: impl FnMut(&mut T) -> Result<(), Errno> + 'static,
    ) -> Self {
        let answer: Answer = Box::new(move |argument| {
            // SAFETY: `Descriptor::issue` passes its `&mut T`, and `T` is the request's, because
            // no two requests have one number (see the test below).
            answer(unsafe { &mut *argument.cast::<T>() })
        });
        self.answers.borrow_mut().insert(request.number(), answer);
        self
    }

    pub(crate) fn answer(&self, number: u32, argument: *mut c_void) -> Result<(), Errno> {
        let name = ALL
            .iter()
            .find(|(_, known)| *known == number)
            .map(|(name, _)| *name);
        self.answered
            .borrow_mut()
            .push(name.expect("requests come from the table"));
        match self.answers.borrow_mut().get_mut(&number) {
            Some(answer) => answer(argument),
            None => Err(Errno::ENOTTY),
        }
    }

    /// Names of the requests that came, in their order.
    pub(crate) fn answered(&self) -> Vec<&'static str> {
        self.answered.borrow().clone()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel that answered {:?}", self.answered.borrow())
    }
}

#[test]
fn no_two_requests_have_one_number() {
    let numbers: std::collections::BTreeSet<u32> = ALL.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers.len(), ALL.len());
}
