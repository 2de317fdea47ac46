// Completes the names of all formats in the extension a1111-sd-webui-tagcomplete, which lists `.pt` files alone: it keeps
// pairs of name and sort key in a global array.
(() => {
    "use strict";

    document.addEventListener("input", ({ target }) => {
        const listed = window.hypernetworks;
        if (target.tagName !== "TEXTAREA" || !target.value.includes("<") || !Array.isArray(listed)) return;
        const known = new Set(listed.map(([name]) => name));
        for (const { value } of document.querySelectorAll("#hnl_txt2img_names option")) {
            if (!known.has(value)) listed.push([value, value.toLowerCase()]);
        }
    }, true);
})();
