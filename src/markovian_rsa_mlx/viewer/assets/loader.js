// Load the script that this page shares with others. Everything else waits for it.

(() => {
  const address = "{address}";
  const policy = globalThis.trustedTypes?.createPolicy("mrsa-shared", { createScriptURL: () => address });
  const script = document.createElement("script");
  script.src = policy ? policy.createScriptURL("") : address;
  script.onerror = () => {
    const words = `This page needs the file ${address}, which is not there. mrsa view writes a page that needs no other.`;
    document.getElementById("main").textContent = words;
  };
  document.head.append(script);
})();
