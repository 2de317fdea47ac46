// The rows of the panel 'Hypernetworks' in txt2img and img2img. extension/panel.py explains how they reach Python.
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
            frame.addEventListener("input", (event) => this.edited(event));
            frame.addEventListener("change", (event) => this.edited(event));
            frame.addEventListener("click", (event) => this.clicked(event));
            frame.addEventListener("focusin", (event) => this.offer(event.target));
            frame.addEventListener("focusout", (event) => this.restore(event.target));
            setInterval(() => frame.isConnected && this.watch(), 500);
            if (this.box.value === "") this.remembered();
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
            if (text !== this.box.value.trim() || text === this.sent) return;
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
            this.frame.replaceChildren(...this.rows.map((row, index) => this.drawn(row, index)));
        }

        drawn(row, index) {
            const field = (name, properties) => {
                const input = element("input", { name, title: properties.ariaLabel, autocomplete: "off", ...properties });
                if (input.type === "checkbox") input.checked = row[name] !== false;
                else input.value = row[name] ?? "";
                return input;
            };
            const number = (name, ariaLabel, limits) =>
                field(name, { type: "number", step: 0.05, ariaLabel, ...limits });
            const labeled = (text, input) => element("label", {}, text, input);
            const button = (act, text, ariaLabel, disabled) =>
                element("button", { type: "button", name: act, ariaLabel, title: ariaLabel, disabled }, text);
            const file = field("name", { type: "text", placeholder: "Hypernetwork", ariaLabel: "Hypernetwork" });
            file.setAttribute("list", `hnl_${this.tab}_names`);
            const slider = field("strength", { type: "range", min: 0, max: 2, step: 0.05, ariaLabel: "Strength" });
            const made = element("div", { className: "hnl-panel-row" },
                field("enabled", { type: "checkbox", ariaLabel: "Enabled" }),
                file,
                element("div", { className: "hnl-panel-order" },
                    button("up", "↑", "Move up", index === 0),
                    button("down", "↓", "Move down", index === this.rows.length - 1),
                    button("remove", "✕", "Remove", false)),
                element("div", { className: "hnl-panel-strength" },
                    labeled("Strength", number("strength", "Strength (number)")), slider),
                element("div", { className: "hnl-panel-more" },
                    labeled("Blocks", field("block", {
                        type: "text", placeholder: "all", ariaLabel: "Blocks, for example up or mid+up@0.5",
                    })),
                    labeled("Start", number("start", "Start: fraction of the sampling", { min: 0, max: 1 })),
                    labeled("End", number("end", "End: fraction of the sampling", { min: 0, max: 1 })),
                    labeled("k", number("k", "Factor on the strength for keys")),
                    labeled("v", number("v", "Factor on the strength for values"))));
            made.setAttribute("role", "listitem");
            made.classList.toggle("hnl-panel-off", row.enabled === false);
            return made;
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
