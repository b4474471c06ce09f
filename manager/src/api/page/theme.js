// The colours that were chosen on this page before, so that it never shows others first.
"use strict";
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* what is not remembered is as the system has it */ }
