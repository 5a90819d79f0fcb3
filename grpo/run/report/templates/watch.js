// Takes over what is new while the run goes on; what is being looked at stays.
"use strict";
(() => {
  let seen = document.body.dataset.version;
  async function look() {
    try {
      const version = await (await fetch("version")).text();
      if (version !== seen) {
        const page = new DOMParser().parseFromString(await (await fetch(".")).text(), "text/html");
        const has = (root) => Boolean(root.getElementById("filters"));
        if (has(page) !== has(document)) location.reload();
        const parts = [...document.querySelectorAll("[data-live]"), document.getElementById("data")].filter(Boolean);
        for (const old of parts) {
          const fresh = page.getElementById(old.id);
          if (fresh) old.replaceWith(fresh);
        }
        seen = version;
        document.dispatchEvent(new Event("report-changed"));
      }
      document.body.dataset.watch = "on";
    } catch {
      document.body.dataset.watch = "off"; // the server has ended; the page stays as it is
    }
    setTimeout(look, 2000);
  }
  look();
})();
