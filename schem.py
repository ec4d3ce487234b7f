import json,sys
from bridge.mcp.tools import TOOLS
from bridge.apidocs import schemas, Documents, Address
from bridge.settings import Settings
k=schemas.components({})
out={}
for n,t in TOOLS.items():
    try: o=t.output_schema(k)
    except TypeError: o=t.output_schema()
    out[n]=(t.input_schema(k,has_default=True),t.input_schema(k,has_default=False),o)
for lang in('zh','en'):
    s=Settings(language=lang)
    d=Documents(s); a=Address('http','h',':1')
    for g in(True,False):
        for p,doc in d.by_path.items(): out[f'{lang}{g}{p}']=json.loads(doc(g,a))
print(json.dumps(out,indent=1,ensure_ascii=False))
