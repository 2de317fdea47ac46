// The rows of the panel 'Apply hypernetworks' in txt2img and img2img. extension/panel.py explains how they reach Python.
(() => {
    "use strict";

    const STORE = "hnloader.rows.";
    const panels = {};

    function element(tag, properties, ...children) {
        const made = Object.assign(document.createElement(tag), properties);
        made.append(...children);
        return made;
    }

    class Panel {
        constructor(frame) {
            this.frame = frame;
            this.tab = frame.dataset.tab;
            this.fresh = JSON.parse(frame.dataset.fresh);
            this.rows = [];
            this.sent = "";
            this.opened = new WeakSet(); // rows whose advanced settings are shown
            frame.addEventListener("input", (event) => this.edited(event));
            frame.addEventListener("change", (event) => this.edited(event));
            frame.addEventListener("click", (event) => this.clicked(event));
            frame.addEventListener("focusin", (event) => this.offer(event.target));
            frame.addEventListener("focusout", (event) => this.restore(event.target));
            setInterval(() => frame.isConnected && this.watch(), 500);
            if (this.box.value === "") this.remembered();
            if (!this.rows.length) this.draw();
        }

        // The field of the webui's script. gradio 4 replaces it while it builds the page.
        get box() {
            return document.querySelector(`#hnl_${this.tab}_rows :is(textarea, input)`);
        }

        // The last text that Python read, and the rows that it found.
        get read() {
            return document.querySelector(`#hnl_${this.tab}_state .hnl-panel-state`)?.dataset ?? {};
        }

        // Draw the rows that Python read, unless this panel wrote them. Ignore answers to older texts. A space at the end
        // comes from `watch` and does not count, since that answer can be lost, too.
        follow() {
            const { source, rows } = this.read;
            const text = source?.trim();
            if (text !== this.box.value.trim()) return;
            if (text === this.sent) {
                this.mark();
                return;
            }
            this.sent = text;
            this.rows = JSON.parse(rows).map((row) => ({ ...this.fresh, strength: 1, ...row }));
            this.draw();
            this.remember();
        }

        add() {
            this.rows.push({ ...this.fresh });
            this.draw();
            this.write();
            this.frame.lastElementChild.querySelector("[name=name]").focus();
        }

        clear() {
            this.rows = [];
            this.draw();
            this.write();
        }

        write() {
            this.sent = this.rows.length ? JSON.stringify(this.rows) : "";
            this.type(this.sent);
            this.remember();
        }

        type(text) {
            const { box } = this;
            box.value = text;
            box.dispatchEvent(new Event("input", { bubbles: true }));
        }

        // gradio loses changes: 4.40 while it builds the page, 3.41 if two follow each other closely. It ignores the same
        // text again, so type the text with and without a space at its end until Python has read it.
        watch() {
            const text = this.box.value.trim();
            if (text !== this.watched) {
                this.watched = text;
                this.tries = 0;
            } else if (this.read.source?.trim() !== text && this.tries < 20) {
                this.tries += 1;
                this.type(this.tries % 2 ? `${text} ` : text);
            }
        }

        remember() {
            try {
                localStorage.setItem(STORE + this.tab, JSON.stringify(this.rows));
            } catch { /* private windows have no storage: the rows live as long as the page */ }
        }

        remembered() {
            try {
                const rows = JSON.parse(localStorage.getItem(STORE + this.tab) || "[]");
                if (!Array.isArray(rows) || !rows.length) return;
                this.rows = rows.map((row) => ({ ...this.fresh, ...row }));
            } catch { return; }
            this.draw();
            this.write();
        }

        draw() {
            const drawn = this.rows.map((row, index) => this.drawn(row, index));
            this.frame.replaceChildren(...(drawn.length ? drawn : [this.empty()]));
            this.marked = null;
            this.mark();
        }

        // What a new user sees: what to do, and the other places that have hypernetworks.
        empty() {
            const { cards, tools } = this.frame.dataset;
            const parts = ["A hypernetwork changes the style or the subject of an image. Add one here"];
            if (cards) parts.push(", or click its card on the page ", element("b", {}, cards), " below to add a tag to the prompt");
            parts.push(".");
            const tab = tools && this.toolsTab();
            if (tab) {
                const link = element("button", { type: "button", name: "tools", textContent: tools });
                parts.push(" To see what each file is for, open ", link, ".");
            }
            return element("p", { className: "hnl-panel-empty" }, ...parts);
        }

        toolsTab() {
            // In 3.41 tabs are plain buttons; newer gradio also has hidden copies of them.
            for (const kind of ["[role=tab]", "> div:first-child button"]) {
                const found = [...document.querySelectorAll(`#tabs ${kind}`)].find((tab) => tab.textContent.trim() === this.frame.dataset.tools);
                if (found) return found;
            }
            return null;
        }

        // Show what Python found out about the file of each row.
        mark() {
            const { source, notes } = this.read;
            if (!notes || notes === this.marked || source.trim() !== this.sent) return;
            this.marked = notes;
            JSON.parse(notes).forEach((note, index) => {
                const row = this.frame.children[index];
                if (!row?.matches(".hnl-panel-row")) return;
                const preview = row.querySelector(".hnl-panel-preview");
                preview.style.backgroundImage = note.preview ? `url("${note.preview}")` : "";
                preview.textContent = note.preview ? "" : (row.querySelector("[name=name]").value[0] ?? "").toUpperCase();
                row.querySelector(".hnl-panel-models").textContent = note.models ? `For ${note.models}` : "";
                row.querySelector(".hnl-panel-problem").textContent = note.problem ?? "";
                row.classList.toggle("hnl-panel-wrong", Boolean(note.problem));
                row.querySelector("[name=name]").setAttribute("aria-invalid", Boolean(note.problem));
            });
        }

        drawn(row, index) {
            const field = (name, properties) => {
                const input = element("input", { name, title: properties.ariaLabel, autocomplete: "off", ...properties });
                if (input.type === "checkbox") input.checked = row[name] !== false;
                else input.value = row[name] ?? "";
                return input;
            };
            const button = (act, text, ariaLabel, disabled) =>
                element("button", { type: "button", name: act, ariaLabel, title: ariaLabel, disabled }, text);
            const file = field("name", { type: "text", placeholder: "Hypernetwork", ariaLabel: "Hypernetwork" });
            file.setAttribute("list", `hnl_${this.tab}_names`);
            const problem = element("p", { className: "hnl-panel-problem" });
            problem.setAttribute("role", "alert");
            const made = element("div", { className: "hnl-panel-row" },
                field("enabled", { type: "checkbox", ariaLabel: "Enabled" }),
                element("span", { className: "hnl-panel-preview", ariaHidden: "true" }),
                element("div", { className: "hnl-panel-file" }, file, element("span", { className: "hnl-panel-models" })),
                element("div", { className: "hnl-panel-order" },
                    button("up", "↑", "Move up", index === 0),
                    button("down", "↓", "Move down", index === this.rows.length - 1),
                    button("remove", "✕", "Remove", false)),
                element("label", { className: "hnl-panel-strength" }, "Strength",
                    field("strength", { type: "number", step: 0.05, ariaLabel: "Strength (number)" }),
                    field("strength", { type: "range", min: 0, max: 2, step: 0.05, ariaLabel: "Strength" })),
                problem,
                this.advanced(row, field));
            made.setAttribute("role", "listitem");
            made.classList.toggle("hnl-panel-off", row.enabled === false);
            return made;
        }

        advanced(row, field) {
            const number = (name, limits) => field(name, { type: "number", step: 0.05, ...limits });
            const lines = [
                ["Blocks", field("block", { type: "text", placeholder: "all" }),
                    "Parts of the model: down, mid, up, or one such as up.1. Combine them as in mid+up@0.5."],
                ["Start", number("start", { min: 0, max: 1 }), "When it begins to act: 0 is the first step, 0.5 the middle."],
                ["End", number("end", { min: 0, max: 1 }), "When it stops: 1 is the last step."],
                ["Keys (k)", number("k"), "Factor on the strength for keys, which decide where the model looks."],
                ["Values (v)", number("v"), "Factor on the strength for values, which decide what it sees there."],
            ];
            const summary = element("summary", {}, "Advanced", element("span", { textContent: this.changes(row) }));
            const details = element("details", { className: "hnl-panel-more", open: this.opened.has(row) }, summary,
                ...lines.map(([text, input, help]) => element("label", {}, element("span", {}, text), input, element("small", {}, help))));
            details.addEventListener("toggle", () => this.opened[details.open ? "add" : "delete"](row));
            return details;
        }

        // The advanced settings that differ from a new row's, as in a tag.
        changes(row) {
            const names = ["block", "start", "end", "k", "v"];
            return names.filter((name) => row[name] !== this.fresh[name]).map((name) => `${name}=${row[name]}`).join(", ");
        }

        indexOf(target) {
            return [...this.frame.children].indexOf(target.closest(".hnl-panel-row"));
        }

        // A name counts when it is selected or the field loses focus, everything else at each key.
        edited({ type, target }) {
            const index = this.indexOf(target);
            const chosen = target.name === "name" && target.list && [...target.list.options].some((o) => o.value === target.value);
            if (index < 0 || (type === "input" && target.name === "name" && !chosen)) return;
            if (target.name === "name" && target.value === "") return;
            const row = this.rows[index];
            const value = this.valueOf(target);
            if (type === "change" && target.type === "number") target.value = value;
            if (row[target.name] === value) return;
            row[target.name] = value;
            target.closest(".hnl-panel-row").querySelector("summary span").textContent = this.changes(row);
            if (target.name === "enabled") target.closest(".hnl-panel-row").classList.toggle("hnl-panel-off", !value);
            for (const twin of target.closest(".hnl-panel-row").querySelectorAll(`[name=${target.name}]`)) {
                if (twin !== target) twin.value = value;
            }
            this.write();
        }

        valueOf(input) {
            if (input.type === "checkbox") return input.checked;
            if (input.type === "text") return input.value.trim();
            return Number.isFinite(input.valueAsNumber) ? input.valueAsNumber : this.fresh[input.name];
        }

        clicked({ target }) {
            if (target.name === "tools") this.toolsTab()?.click();
            const index = this.indexOf(target);
            if (index < 0 || target.tagName !== "BUTTON") return;
            const [row] = this.rows.splice(index, 1);
            if (target.name !== "remove") this.rows.splice(index + (target.name === "up" ? -1 : 1), 0, row);
            this.draw();
            this.write();
            const again = target.name === "remove" ? null : this.frame.children[this.rows.indexOf(row)];
            again?.querySelector(`[name=${target.name}]:enabled, [name=remove]`)?.focus();
        }

        // Browsers offer only files that match the text, so empty the field to offer every file.
        offer(input) {
            if (input.name !== "name" || input.value === "") return;
            input.placeholder = input.value;
            input.value = "";
        }

        restore(input) {
            if (input.name !== "name") return;
            const row = this.rows[this.indexOf(input)];
            if (row && input.value === "") input.value = row.name;
            input.placeholder = "Hypernetwork";
        }
    }

    function find() {
        for (const frame of document.getElementsByClassName("hnl-panel-rows")) {
            const { tab } = frame.dataset;
            if (!document.querySelector(`#hnl_${tab}_rows :is(textarea, input)`)) continue;
            if (panels[tab]?.frame !== frame) panels[tab] = new Panel(frame);
            panels[tab].follow();
        }
    }

    window.hnloaderPanel = (tab) => panels[tab];
    new MutationObserver(find).observe(document, { childList: true, subtree: true });
    find();
})();
