// Takes over what is new while the run goes on; what is being looked at stays.
"use strict";
(() => {
  let seen = document.body.dataset.version;
  async function get(path) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(answer.statusText); // the folder cannot be read just now
    return answer.text();
  }
  async function look() {
    try {
      const version = await get("version");
      if (version !== seen) {
        const page = new DOMParser().parseFromString(await get("."), "text/html");
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
      document.body.dataset.watch = "off"; // the server has ended, or has no page; this one stays as it is
    }
    setTimeout(look, 2000);
  }
  look();
})();
