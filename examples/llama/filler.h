/* What --passkey hides a key in where nobody gives texts. Each begins anew where it ends. */
#ifndef LLAMA_FILLER_H
#define LLAMA_FILLER_H

static const char filler_grass[] = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

static const char filler_essay[] =
	" The mill stood where the creek met the bay, and it took its power from the moon. Twice a day the water rose behind the gate and"
	" twice a day the miller let it go. Nobody in the village thought this strange. They had grown up with a clock that lost fifty"
	" minutes every day, and they baked, fished and slept by it. Visitors complained that the inn served breakfast in the dark; the"
	" innkeeper answered that it was not dark in the oven.\n\nI went there first as a student, to draw the wheels. My teacher had"
	" told me that machines are best understood with a pencil, since the hand refuses to draw what the head has not followed. He was"
	" right about the wheels. Of the water I understood nothing until an old woman named Marta took me out to the gate at night and"
	" made me listen. Before it turns, the tide goes quiet, she said, the way a child does that is about to ask for something. I"
	" heard only frogs. But a moment later the planks moved under our feet.\n\nWhat strikes me now is how little the place had"
	" changed in order to last. The wheels were new, the stones were new, the gate had been replaced after every great storm. Only"
	" the agreement was old: whoever grinds first in spring mends the wall in autumn. It was written nowhere. When a lawyer from the"
	" town wished to see it, they showed him the wall.\n\nWe like to believe that things endure because they are strong. The wall was"
	" not strong. A boy could pull a stone out of it, and boys did. It endured because it was easy to repair, and because everyone"
	" who could pull a stone out knew who would have to put it back. I have since seen dams of concrete that nobody dared to touch,"
	" with a crack in them that had a file of its own in an office far away. They were strong, and they will be gone before that wall"
	" is.\n\nMarta kept bees as well. She held that bees and millers are the only honest traders, because neither can hide what the"
	" weather was like. In bad years she gave the honey away, in good years she sold it dear, and when I asked whether it should not"
	" be the other way round she laughed so long that the bees came out to look. People pay for plenty, she said. In hunger they only"
	" remember.\n\nOf my drawings the miller kept one, the worst, in which the great wheel has a spoke too many. He hung it beside"
	" the door and sent every guest to find the mistake. Few did. Most praised the shading. After some winters he told me that he had"
	" begun to count the spokes himself, on the real wheel, in the evenings, to be sure. That, I think, is what a drawing is for: not"
	" to show a thing as it is, but to send us back to look.\n\nThe railway came late and left early. For a few summers there were"
	" parasols on the dyke and a band on Sundays, and the mill ground nothing but coffee. Then the road was built on the other side"
	" of the bay, and the quiet returned so completely that the gulls moved into the station. The miller bought the bell from the"
	" platform. He rang it when the gate was about to open, and the village, which had never needed a bell, complained for a year and"
	" then set its clocks by it.\n\nI am told that engineers are back at the creek, with instruments, to see whether the bay could"
	" light a town. It surely could. I only hope that one of them can draw, and that somebody takes him out to the gate at night and"
	" makes him listen. He will hear frogs. But the planks will move, and he may write that down too.";

static const char filler_manual[] =
	"\n\n## 4. Frames\n\nA frame is what a station sends at once. It begins with a header of 12 bytes, which is followed by the"
	" payload and by a checksum of 4 bytes. All numbers are little-endian. A receiver that finds a header of another length MUST drop"
	" the frame and MUST NOT answer it.\n\n| offset | bytes | field | meaning |\n|---|---|---|---|\n| 0 | 2 | magic | always 0x7E51 |"
	"\n| 2 | 1 | version | 3; stations of version 2 send 2 |\n| 3 | 1 | kind | see section 4.2 |\n| 4 | 4 | sequence | counts frames,"
	" not bytes; begins at 1 |\n| 8 | 2 | length | of the payload, at most 1480 |\n| 10 | 2 | reserved | 0 when sent, ignored when"
	" received |\n\n### 4.1 Sequence numbers\n\nThe sequence number of a station grows by one with each frame, whether or not it is"
	" sent again. After 4294967295 comes 1; 0 is never used. Two frames of one station with the same number are the same frame, and"
	" the second SHOULD be counted in `duplicates`. A gap of more than 64 numbers means that the station was started anew.\n\n### 4.2"
	" Kinds\n\n- `hello` (1): the first frame of a station. Its payload is the name of the station, at most 63 bytes of UTF-8,"
	" without a terminating zero.\n- `data` (2): what the layer above wants to be carried. It is not looked at.\n- `ack` (3): four"
	" bytes, the largest number up to which all frames have arrived.\n- `pause` (4): two bytes, how many milliseconds the sender"
	" should wait. 0 ends a pause at once.\n- `bye` (5): no payload. A station that has said bye may say hello again after 250 ms."
	"\n\nOther kinds are dropped. Kinds from 128 on are left to experiments.\n\n### 4.3 Checksum\n\nThe checksum is CRC-32C over"
	" header and payload. Implementations SHOULD compute it while copying. If it does not match, the frame is dropped and counted in"
	" `damaged`; nothing else in it can be trusted, its sequence number included.\n\n## 5. Timers\n\nA station keeps three timers."
	"\n\n1. `resend`: starts with each frame that wants an ack, at 200 ms, and doubles with each attempt until 3200 ms. After six"
	" attempts the peer is considered lost.\n2. `idle`: starts anew with everything that is received, at 15 s. When it fires, a"
	" `hello` is sent.\n3. `drain`: starts with `bye`, at 2 s. What arrives until it fires is still acknowledged.\n\nTimers need not"
	" be exact: 10 % early or late is allowed. A station with fewer than 1024 bytes of memory for frames MAY leave out `drain`.\n\n##"
	" 6. Configuration\n\n| key | default | allowed | reload |\n|---|---|---|---|\n| `name` | host name | 1 to 63 bytes | no |\n|"
	" `port` | 7351 | 1 to 65535 | no |\n| `window` | 32 | 1 to 64 | yes |\n| `resend` | 200 | 20 to 5000 | yes |\n| `trace` | off |"
	" off, frames, bytes | yes |\n\nA key that is not known is an error, as is one that appears twice. Values are read once; `SIGHUP`"
	" reads those again that can be reloaded, and says which could not be.\n\n## 7. Errors\n\nErrors are reported to the layer above,"
	" never to the peer. Each has a number and a sentence. 16: the peer is lost. 17: the window is full and the call asked not to"
	" wait. 18: the payload is longer than 1480 bytes. 19: the station has said bye. 32 and above belong to the system. A library"
	" MUST keep the last error of each station until it is read or the station is closed.\n\n## 8. Security\n\nNothing here is"
	" encrypted. A checksum finds accidents, not attackers. Stations that meet on a network that others can reach MUST run inside a"
	" tunnel, and SHOULD refuse a `hello` whose name is already in use from another address.\n";

#endif
